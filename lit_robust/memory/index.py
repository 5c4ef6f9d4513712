"""Approximate search for nearest neighbours, by Faiss: built once, kept beside the memory, opened by a test."""

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
from lit_robust.core.files import atomic_path, write_text
from lit_robust.memory.directory import Memory, file_digest
from lit_robust.memory.neighbours import nearest_keys

log = logging.getLogger(__name__)

Search = Callable[[Tensor, int], Tensor]
"""Queries ``[B, d]`` and k to rows ``[B, k]`` int64, the most similar first; -1 where fewer were found."""

ADDED = 1 << 16  # Keys that are handed to Faiss at once.
TRAINED_ON = 1 << 18  # The most keys that an index is trained on; Faiss samples its cells' centres from fewer.


@dataclass(frozen=True)
class IndexNote:
    """What is known of an index beside it, in a file of the same name that ends in .json.

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
        with atomic_path(file) as beside:
            faiss.write_index(index, str(beside))
    except RuntimeError as error:
        raise UserError(f"Faiss cannot write {file} ({faiss_reason(error)}): free some space.") from error
    note = IndexNote(factory, memory.manifest.keys_sha256, file_digest(file), version_of_faiss())
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
        note = IndexNote(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{file.with_suffix('.json')} cannot be read ({error}): build the index again.") from error
    if note.keys_sha256 != memory.manifest.keys_sha256:
        raise DataError(f"{file} is of other keys than the memory's: build the index again.")
    if not file.is_file() or file_digest(file) != note.file_sha256:
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
    """Return the share of the exact neighbours ``[B, k]`` that was found, ``[B]``; rows of -1 are none."""
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
    """Return what tells one approximate search from another, for a result's protocol."""
    return {"index": factory, "search_settings": settings or "Faiss's own", "faiss": version_of_faiss()}


def _sample(memory: Memory, seed: int) -> Any:
    count = memory.manifest.count
    chosen = np.random.default_rng(seed).choice(count, size=min(count, TRAINED_ON), replace=False)
    return np.asarray(memory.keys[np.sort(chosen)], dtype=np.float32)
