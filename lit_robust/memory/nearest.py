"""Nearest neighbours: only the k most similar keys take part, found exactly, or approximately by an index of Faiss."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import atomic_path, file_sha256, write_text
from lit_robust.core.precision import full_precision
from lit_robust.memory.continuous import QUERIES, products
from lit_robust.memory.store import Memory, read_json

log = logging.getLogger(__name__)

Search = Callable[[Tensor, int], Tensor]
"""Queries ``[B, d]`` and k to rows ``[B, k]`` int64, the most similar first; -1 where fewer were found."""

ADDED = 1 << 16  # Keys that are handed to Faiss at once.
TRAINED_ON = 1 << 18  # The most keys that an index is trained on; Faiss samples its cells' centres from fewer.
COMPARED = 16384  # Compared at once: with 512 queries 32 MiB.
FEW = 64  # Queries whose neighbours are brought together at once: of 50 keys with 2,048 numbers these are 25 MiB.
GROUP = 32  # Keys of which only the highest is looked at first.


def nearest_keys(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k keys of highest inner product with each query; of equal ones those of lower row.

    Args:
        queries: ``[B, d]`` fp32; no gradient flows through the choice.
        keys: ``[K, d]``, in any floating type.
        k: how many; all where there are fewer.

    Returns:
        Inner products ``[B, k]`` fp32, falling, and rows ``[B, k]`` int64.
    """
    k = min(k, len(keys))
    if not len(queries):
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    with torch.no_grad(), full_precision(queries.device.type):
        blocks = torch.split(queries.float(), QUERIES)
        found = [_nearest(block, keys, k) for block in blocks]
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])


def _nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys), COMPARED):
        part = keys[start : start + COMPARED]
        found = products(part if part.is_cuda else part.float(), queries)
        maxima = _group_maxima(found)
        if best.shape[1] < k:
            # The k highest lie within the k groups of highest maximum, of equal ones the first: before any other group
            # come k numbers that are as high.
            groups = maxima.sort(dim=0, descending=True, stable=True).indices[:k]
        else:
            # Most groups hold nothing that is nearer than the k nearest so far.
            most = int((maxima > best[:, -1]).sum(0).max())
            if most == 0:
                continue
            groups = maxima.topk(most, dim=0).indices
        values, places = _highest(found, groups.sort(dim=0).values, k)
        best, rows = _merged(best, rows, values, places + start, k)
    return best, rows


def _group_maxima(found: Tensor) -> Tensor:
    """Return the highest of each ``GROUP`` rows of ``[K, B]``.

    To look at groups first adds 12 % to the time of the products with 65,536 keys of 2,048 numbers; `torch.topk` of all
    similarities adds 39 %, and takes any of equal ones.
    """
    whole = len(found) // GROUP * GROUP
    maxima = found[:whole].view(-1, GROUP, found.shape[1]).amax(1)
    return torch.cat([maxima, found[whole:].amax(0, keepdim=True)]) if whole < len(found) else maxima


def _highest(found: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of each column of ``[K, B]`` within its groups, of equal ones the first, and their rows.

    Args:
        found: ``[K, B]``.
        groups: ``[G, B]``, each column's groups, ascending.
        k: how many; all where there are fewer.
    """
    places = (groups[:, None] * GROUP + torch.arange(GROUP, device=found.device)[:, None]).flatten(0, 1)
    # The last group may be shorter.
    there = places < len(found)
    candidates = found.gather(0, places.clamp(max=len(found) - 1)).masked_fill(~there, -torch.inf).T.contiguous()
    values, order = candidates.topk(min(k, len(found), candidates.shape[1]), dim=1)
    # `topk` takes any of those that equal the last one, so where it had a choice it is asked again.
    last = values[:, -1:]
    tied = ((candidates == last).sum(1) > (values == last).sum(1)).nonzero()[:, 0]
    if len(tied):
        ordered = candidates[tied].sort(dim=1, descending=True, stable=True)
        values[tied], order[tied] = ordered.values[:, : values.shape[1]], ordered.indices[:, : values.shape[1]]
    return values, places.T.gather(1, order)


def _merged(best: Tensor, rows: Tensor, values: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of two lists; the first list's rows are all lower than the second's."""
    by_place = places.argsort(1)
    values = torch.cat([best, values.gather(1, by_place)], 1)
    rows = torch.cat([rows, places.gather(1, by_place)], 1)
    ordered = values.sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k], rows.gather(1, ordered.indices[:, :k])


class _ProductsWithRows(torch.autograd.Function):
    """Queries ``[B, d]`` and rows ``[B, k]`` to inner products ``[B, k]``; holds the keys of a few queries at once."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(keys, rows)
        found = queries.new_empty(rows.shape)
        with full_precision(queries.device.type):
            for start in range(0, len(rows), FEW):
                few = slice(start, start + FEW)
                found[few] = torch.einsum("bd,bkd->bk", queries[few], keys[rows[few]].float())
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        keys, rows = ctx.saved_tensors
        inner = gradients[0].new_empty(len(rows), keys.shape[1])
        with full_precision(inner.device.type):
            for start in range(0, len(rows), FEW):
                few = slice(start, start + FEW)
                inner[few] = torch.einsum("bk,bkd->bd", gradients[0][few], keys[rows[few]].float())
        return inner, None, None


def neighbour_log_sums(
    queries: Tensor, keys: Tensor, labels: Tensor, rows: Tensor, num_classes: int, theta: Tensor | float
) -> Tensor:
    """Return the logarithm of each class's sum of exp(theta q.mu) over given neighbours.

    Differentiable in the queries, the choice of neighbours held fixed, as Sitawarin and Wagner (2020) attack such
    classifiers. A class without a neighbour has no gradient, which is not robustness.

    Args:
        queries: ``[B, d]`` fp32.
        keys: ``[K, d]``, in any floating type.
        labels: int64 ``[K]``.
        rows: int64 ``[B, k]``, each query's neighbours; -1 for none, as approximate searches may give.
        num_classes: how many classes there are.
        theta: inverse temperature, above 0.

    Returns:
        ``[B, num_classes]`` fp32; minus infinity for a class without neighbours.
    """
    there = rows >= 0
    rows = rows.clamp(min=0)
    found: Tensor = _ProductsWithRows.apply(queries.float(), keys, rows)
    exponents = (theta * found).masked_fill(~there, -torch.inf)
    classes = labels[rows]
    # Each class is shifted by its own highest, so that none is lost next to another that is far more likely.
    highest = exponents.new_full((len(rows), num_classes), -torch.inf)
    highest = highest.scatter_reduce(1, classes, exponents.detach(), "amax")
    shifts = torch.where(there, highest.gather(1, classes), 0.0)
    sums = torch.zeros_like(highest).scatter_add(1, classes, (exponents - shifts).exp())
    # The logarithm of 0 would make the gradients of all other classes NaN.
    logs = torch.where(sums > 0, sums, 1).log() + highest
    return torch.where(sums > 0, logs, -torch.inf)


@dataclass(frozen=True)
class IndexNote:
    """What is known of an index besides itself, in a file of the same name that ends in .json.

    Attributes:
        factory: Faiss's own description, such as ``IVF1024,Flat``, ``HNSW32`` or ``IVF1024,PQ64``.
        keys_sha256: of the memory's keys.
        file_sha256: of the index's file.
        faiss: the version that built it.
    """

    factory: str
    keys_sha256: str
    file_sha256: str
    faiss: str


def index_file(folder: Path, factory: str) -> Path:
    """Return the file of an index in a memory's folder."""
    return folder / f"index-{re.sub(r'[^A-Za-z0-9]+', '-', factory).strip('-').lower()}.faiss"


def build_index(memory: Memory, factory: str, seed: int) -> Path:
    """Build an index of a memory's keys by inner product, and write it into the memory's folder.

    Args:
        memory: its keys are read in pieces; the index itself is held in RAM.
        factory: as `IndexNote.factory`.
        seed: of the keys that the index is trained on.

    Returns:
        The index's file.

    Raises:
        UserError: Faiss is not there, does not know the description, has too few keys for it, or the disk is full.
    """
    faiss = import_faiss()
    try:
        index = faiss.index_factory(memory.manifest.dimensions, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(_sample(memory, seed))
        for start in tqdm(range(0, memory.manifest.count, ADDED), f"indexing, {factory}", unit="piece", delay=2):
            index.add(np.asarray(memory.keys[start : start + ADDED], dtype=np.float32))
    except RuntimeError as error:
        raise UserError(
            f"Faiss cannot build the index {factory!r} of {memory.manifest.count} keys ({faiss_reason(error)}): see "
            "its index factory's descriptions, such as HNSW32."
        ) from error
    file = index_file(memory.folder, factory)
    try:
        with atomic_path(file) as temporary:
            faiss.write_index(index, str(temporary))
    except RuntimeError as error:
        raise UserError(f"Faiss cannot write {file} ({faiss_reason(error)}): free some space.") from error
    note = IndexNote(factory, memory.manifest.keys_sha256, file_sha256(file), version_of_faiss())
    write_text(file.with_suffix(".json"), json.dumps(asdict(note), indent=1) + "\n")
    return file


def open_index(memory: Memory, factory: str, settings: str, device: torch.device) -> Search:
    """Open an index that `build_index` wrote.

    An inverted file stays on disk and is mapped. On a GPU the index is copied there where this Faiss can.

    Args:
        memory: of the index.
        factory: as it was built with.
        settings: of the search, as Faiss writes them, such as ``nprobe=64`` or ``efSearch=128``; empty for Faiss's own.
        device: of the queries.

    Raises:
        UserError: Faiss is not there, there is no such index, or it does not know the settings.
        DataError: the index is of other keys, or its file has changed.
    """
    faiss = import_faiss()
    file = index_file(memory.folder, factory)
    if not file.with_suffix(".json").is_file() or check_index(memory, file) != factory:
        raise UserError(
            f"The memory {memory.folder} has no index {factory!r}: build it with `lit-robust memory index "
            f"{memory.folder} --factory {factory}`."
        )
    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP if "IVF" in factory else 0)
    parameters = faiss.ParameterSpace()
    if device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
        try:
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
            parameters = faiss.GpuParameterSpace()
        except RuntimeError as error:  # Not every kind of index is there for GPUs, HNSW not.
            log.warning("The index %s is searched on the processor: %s", factory, faiss_reason(error))

    def search(queries: Tensor, k: int) -> Tensor:
        _, rows = index.search(np.ascontiguousarray(queries.detach().float().cpu().numpy()), k)
        return torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(queries.device)

    try:
        if settings:
            parameters.set_index_parameters(index, settings)
        search(torch.zeros(1, memory.manifest.dimensions), 1)  # Some settings are found wrong only now.
    except RuntimeError as error:
        raise UserError(
            f"The index {factory!r} cannot be searched with {settings!r} ({faiss_reason(error)}): write the settings "
            "as nprobe=64 (inverted files) or efSearch=128 (HNSW)."
        ) from error
    return search


def check_index(memory: Memory, file: Path) -> str:
    """Return the description of an index in a memory's folder, after a look at its note and its digest.

    Args:
        memory: of the index.
        file: of the index.

    Raises:
        DataError: the index is of other keys, or its file is missing or has changed.
    """
    try:
        note = IndexNote(**read_json(file.with_suffix(".json")))
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{file.with_suffix('.json')} cannot be read ({error}): build the index again.") from error
    if note.keys_sha256 != memory.manifest.keys_sha256:
        raise DataError(f"{file} is of other keys than the memory's: build the index again.")
    if not file.is_file() or file_sha256(file) != note.file_sha256:
        raise DataError(f"{file} is missing or has changed since it was built: build the index again.")
    return note.factory


def check_indexes(memory: Memory) -> list[str]:
    """Return the descriptions of all indexes in a memory's folder, after a look at each; see `check_index`."""
    names = {file.stem for ending in ("json", "faiss") for file in memory.folder.glob(f"index-*.{ending}")}
    return [check_index(memory, memory.folder / f"{name}.faiss") for name in sorted(names)]


def exact_search(keys: Tensor) -> Search:
    """Return the exact search among keys ``[K, d]``, by matrix products."""
    return lambda queries, k: nearest_keys(queries, keys, k)[1]


def recall(found: Tensor, exact: Tensor) -> Tensor:
    """Return the share of the exact neighbours ``[B, k]`` that was found, ``[B]``; rows of -1 do not count."""
    return (exact[:, :, None] == found[:, None, :]).any(2).double().mean(1)


def import_faiss() -> Any:
    """Return the module ``faiss``, or raise a UserError that says how to come by it."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"The search index needs Faiss ({error}): install faiss-gpu or faiss-cpu, or search exactly, without index."
        ) from error
    return faiss


def version_of_faiss() -> str:
    """Return the installed version of Faiss, under whichever of its names."""
    for name in ("faiss-gpu", "faiss-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "faiss"


def faiss_reason(error: RuntimeError) -> str:
    """Return what an error of Faiss says, without the function, the source file and the condition it comes from."""
    text = re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", " ".join(str(error).split()))
    return re.sub(r"^'.*?' failed: ", "", text)


def index_facts(factory: str, settings: str) -> Mapping[str, str]:
    """Return what distinguishes one approximate search from another, for a result's protocol."""
    return {"index": factory, "search_settings": settings or "Faiss's own", "faiss": version_of_faiss()}


def _sample(memory: Memory, seed: int) -> Any:
    count = memory.manifest.count
    chosen = np.random.default_rng(seed).choice(count, size=min(count, TRAINED_ON), replace=False)
    return np.asarray(memory.keys[np.sort(chosen)], dtype=np.float32)
