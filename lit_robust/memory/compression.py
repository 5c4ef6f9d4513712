"""Making a memory smaller: fewer keys by clusters within each class, or fewer dimensions by principal components."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from lit_robust import __version__
from lit_robust.core.errors import DataError, UserError, check_choice
from lit_robust.core.files import write_tensors
from lit_robust.core.seeds import stream_seed
from lit_robust.memory.build import MemoryBuilder, begin_memory, building_alone, part_folder, resume_memory
from lit_robust.memory.store import PROJECTION, Manifest, Memory

Centring = Literal["both", "keys"]
On = Literal["unit", "raw"]


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components, and what is done with their mean.

    Attributes:
        mean: fp32 ``[d]``, of the keys the components were found on.
        components: fp32 ``[dimensions, d]``, of unit length, the most important first; the sign of each makes its
            largest number positive.
        variances: fp64 ``[dimensions]``, of the keys along each.
        total_variance: of the keys, along all ``d``.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    total_variance: float

    @property
    def explained(self) -> float:
        """The share of the variance that is left."""
        return float(self.variances.sum()) / self.total_variance if self.total_variance else 1.0

    def apply(self, vectors: Tensor) -> Tensor:
        """Return ``[B, dimensions]`` of vectors ``[B, d]``, centred."""
        return (vectors - self.mean) @ self.components.T

    def save(self, file: Path) -> None:
        """Write mean and components as safetensors, all of it or nothing."""
        write_tensors(file, {"mean": self.mean, "components": self.components})


def read_projection(memory: Memory) -> tuple[Tensor, Tensor]:
    """Return mean fp32 ``[d]`` and components fp32 ``[dimensions, d]`` of a memory's keys.

    Raises:
        DataError: the file is missing or broken, or not of these keys.
    """
    file, fix = memory.folder / PROJECTION, "copy the whole memory, or project it again"
    try:
        tensors = load_file(str(file))
        mean, components = tensors["mean"], tensors["components"]
    except Exception as error:  # The library's own exceptions are private.
        raise DataError(f"{file} cannot be read ({error}): {fix}.") from error
    shapes = (memory.manifest.dimensions, mean.shape[-1]) if mean.ndim == 1 else ()
    kinds = {mean.dtype, components.dtype}
    if tuple(components.shape) != shapes or kinds != {torch.float32}:
        raise DataError(
            f"{file} holds a mean {list(mean.shape)} and components {list(components.shape)}, which do not give "
            f"keys of {memory.manifest.dimensions} dimensions in fp32: {fix}."
        )
    if not bool(mean.isfinite().all() and components.isfinite().all()):
        raise DataError(f"{file} holds numbers that are not finite: {fix}.")
    return mean, components


def principal_components(pieces: Iterator[NDArray[np.floating]], dimensions: int) -> Projection:
    """Return the principal components of vectors that come in pieces.

    Mean and covariance are summed in fp64 around the first piece's mean, so the result does not depend on the pieces
    beyond rounding; an incremental decomposition, as in Orhan and Lake's code, gives an approximation of the same.

    Args:
        pieces: ``[n, d]`` each, all but the last of more than one vector.
        dimensions: how many components, at most ``d``.

    Raises:
        UserError: more components are asked for than there are dimensions or vectors.
    """
    count, origin, total, products = 0, None, None, None
    for piece in pieces:
        vectors = torch.from_numpy(np.asarray(piece, dtype=np.float64))
        if origin is None or total is None or products is None:
            width = vectors.shape[1]
            origin, total = vectors.mean(0), vectors.new_zeros(width)
            products = vectors.new_zeros(width, width)
        centred = vectors - origin
        count += len(vectors)
        total += centred.sum(0)
        products.addmm_(centred.T, centred)
    if origin is None or total is None or products is None or dimensions > min(len(origin), count):
        have = 0 if origin is None else min(len(origin), count)
        raise UserError(f"{dimensions} principal components of {have}: ask for at most {have}.")
    offset = total / count
    covariance = products / count - torch.outer(offset, offset)
    values, vectors = torch.linalg.eigh(covariance)
    components = vectors.T.flip(0)[:dimensions]
    peaks = components.gather(1, components.abs().argmax(1, keepdim=True))
    return Projection(
        mean=(origin + offset).float(),
        components=(components * peaks.sign()).float(),
        variances=values.flip(0)[:dimensions].clamp(min=0),
        total_variance=float(covariance.diagonal().sum()),
    )


ROWS = 8192  # Keys in RAM at once while they are projected.
BATCH = 128  # Keys a step of mini-batch k-means, as in eminorhan/robust-vision.


def cluster(memory: Memory, folder: Path, factor: int, on: On, seed: int) -> Manifest:
    """Write a memory whose keys are the centres of clusters within each class.

    A class of n keys gets n // factor + 1 clusters, as in Orhan and Lake's code, but never more than n, by mini-batch
    k-means; the centres are made unit length and count alike, however many keys they stand for.

    Args:
        memory: with one class's keys at a time in RAM.
        folder: of the new memory; must not exist.
        factor: about how many times fewer keys, above 1.
        on: cluster the keys as they came from the network, as that code does (``raw``), or made unit length (``unit``).
        seed: of the first centres and the order of batches; each class has its own stream.

    Raises:
        UserError: the factor, the memory or the folder does not fit.
    """
    check_choice("on", on, get_args(On))
    if factor < 2:
        raise UserError(f"The factor of clustering is {factor}: give 2 or more.")
    if memory.manifest.compression:
        raise UserError(f"{memory.folder} was made smaller already: start from the memory that `fit` built.")
    classes, sizes = np.unique(memory.labels, return_counts=True)
    clusters = np.minimum(sizes // factor + 1, sizes)
    labels = np.repeat(classes, clusters)
    step = {"kind": "k-means", "factor": factor, "on": on, "seed": seed, "batch": BATCH}
    manifest = replace(_made_smaller(memory.manifest, step), count=len(labels))
    ends, starts = np.cumsum(clusters), np.cumsum(sizes) - sizes
    with _writing(folder, manifest, labels) as builder:
        for place in tqdm(range(len(classes)), "clustering", unit="class", delay=2):
            rows = slice(int(starts[place]), int(starts[place] + sizes[place]))
            vectors = memory.raw(rows) if on == "raw" else np.asarray(memory.keys[rows], dtype=np.float32)
            centres = _centres(vectors, int(clusters[place]), stream_seed(seed, "k-means", int(classes[place])))
            builder.write(np.arange(ends[place] - clusters[place], ends[place]), *unit_length(centres))
        return builder.finish()


def project(memory: Memory, folder: Path, dimensions: int, on: On, centring: Centring) -> Manifest:
    """Write a memory whose keys are projected on their principal components and made unit length again.

    Args:
        memory: read twice, a piece at a time.
        folder: of the new memory; must not exist.
        dimensions: how many components.
        on: project the keys as they came from the network (``raw``), or made unit length (``unit``).
        centring: ``both`` subtracts the keys' mean from keys and queries. ``keys`` leaves the queries as they are, as
            eminorhan/robust-vision's ``evaluate_*_compressed.py`` do by mistake: there only to test that paper's claim
            that fewer dimensions cost much accuracy.

    Raises:
        UserError: the dimensions, the memory or the folder does not fit.
    """
    check_choice("on", on, get_args(On))
    check_choice("centring", centring, get_args(Centring))
    if any(step["kind"] == "components" for step in memory.manifest.compression):
        raise UserError(f"{memory.folder} was projected already: start from a memory of all dimensions.")
    if on == "raw" and memory.manifest.compression:
        raise UserError(f"{memory.folder} holds centres, which have no lengths of their own: project it with on: unit.")

    def pieces() -> Iterator[NDArray[np.float32]]:
        for start in tqdm(range(0, memory.manifest.count, ROWS), "projecting", unit="piece", delay=2):
            rows = slice(start, start + ROWS)
            yield memory.raw(rows) if on == "raw" else np.array(memory.keys[rows], dtype=np.float32)

    projection = principal_components(pieces(), dimensions)
    step = {
        "kind": "components",
        "dimensions": dimensions,
        "on": on,
        "centring": centring,
        "explained_variance": round(projection.explained, 6),
    }
    manifest = replace(_made_smaller(memory.manifest, step), dimensions=dimensions)
    with _writing(folder, manifest, np.asarray(memory.labels)) as builder:
        start = 0
        for piece in pieces():
            keys = projection.apply(torch.from_numpy(piece)).numpy()
            builder.write(np.arange(start, start + len(piece)), *unit_length(keys))
            start += len(piece)
        projection.save(part_folder(folder) / PROJECTION)
        return builder.finish()


def unit_length(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return vectors ``[B, d]`` divided by their lengths, and the lengths ``[B]``; what is zero stays zero."""
    norms = np.linalg.norm(vectors, axis=1)
    return vectors / np.maximum(norms, 1e-12)[:, None], norms


def _centres(vectors: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.float32]:
    if clusters == len(vectors):
        return vectors
    from sklearn.cluster import MiniBatchKMeans

    # Its own state is 32 bits wide.
    search = MiniBatchKMeans(clusters, batch_size=BATCH, random_state=seed % 2**32, n_init=3)
    centres: NDArray[np.float32] = search.fit(vectors).cluster_centers_.astype(np.float32)
    return centres


def _made_smaller(manifest: Manifest, step: dict[str, Any]) -> Manifest:
    return replace(manifest.unfinished(), compression=(*manifest.compression, step), version=__version__)


@contextmanager
def _writing(folder: Path, manifest: Manifest, labels: NDArray[np.int64]) -> Iterator[MemoryBuilder]:
    with building_alone(folder):
        begin_memory(folder, manifest, labels)
        try:
            yield resume_memory(folder, manifest, labels)
        except BaseException:
            shutil.rmtree(part_folder(folder), ignore_errors=True)  # Unlike a fit, it begins anew.
            raise
