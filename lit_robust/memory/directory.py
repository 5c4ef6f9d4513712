"""A finished memory on disk: memory-mapped keys, sorted by class, with labels, norms and a manifest."""

import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_robust.core.errors import DataError, UserError
from lit_robust.memory.manifest import Manifest

KEYS, LABELS, NORMS, PROJECTION = "keys.npy", "labels.npy", "norms.npy", "projection.safetensors"
PIECE = 1 << 26  # Bytes that are hashed in one go, by as many threads as there are.


@dataclass(frozen=True, eq=False)
class Memory:
    """An opened memory.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        keys: ``[K, d]``, sorted by class; of unit length unless the manifest says otherwise; mapped, not read.
        labels: int64 ``[K]``, ascending.
        norms: fp32 ``[K]``, the length of each key before it was divided by it.
    """

    folder: Path
    manifest: Manifest
    keys: NDArray[np.floating]
    labels: NDArray[np.int64]
    norms: NDArray[np.float32]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return keys and labels as tensors on the CPU; the keys stay mapped, and must not be written to."""
        with warnings.catch_warnings():
            # Nobody writes to the keys; a copy of them could be larger than the memory of the machine.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self.keys), torch.from_numpy(np.array(self.labels))

    def raw(self, rows: slice) -> NDArray[np.float32]:
        """Return some keys as they came from the network, before they were made unit length."""
        return np.asarray(self.keys[rows], dtype=np.float32) * self.norms[rows, None]


def open_memory(folder: Path, check_digest: bool = True) -> Memory:
    """Open a finished memory.

    Args:
        folder: of the memory.
        check_digest: read all files once and compare their digests; else the arrays' sizes alone are compared.

    Raises:
        UserError: there is no finished memory in ``folder``.
        DataError: a file of it is missing, cut short, or has changed.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if not manifest.keys_sha256:
        raise UserError(f"The memory in {folder} is not finished: {_how_to_finish(manifest)}.")
    fix = "copy the whole memory, or build it again"
    keys = mapped_array(folder / KEYS, (manifest.count, manifest.dimensions), manifest.key_type, fix)
    labels = mapped_array(folder / LABELS, (manifest.count,), "int64", fix)
    norms = mapped_array(folder / NORMS, (manifest.count,), "float32", fix)
    if manifest.projects and not (folder / PROJECTION).is_file():
        raise DataError(f"{folder / PROJECTION} is missing: {fix}.")
    if check_digest:
        found = {
            KEYS: (array_digest(keys), manifest.keys_sha256),
            LABELS: (array_digest(labels), manifest.labels_sha256),
            NORMS: (array_digest(norms), manifest.norms_sha256),
        }
        if manifest.projects:
            found[PROJECTION] = file_digest(folder / PROJECTION), manifest.projection_sha256
        for name, (ours, said) in found.items():
            if ours != said:
                raise DataError(f"{folder / name} has changed since the memory was built: build it again, or copy it.")
    return Memory(folder, manifest, keys, labels, norms)


def _how_to_finish(manifest: Manifest) -> str:
    if not manifest.compression:
        return "run the `lit-robust fit` that builds it again"
    command = "project" if manifest.projects else "cluster"
    return f"remove it, and run the `lit-robust memory {command}` that makes it again"


def array_digest(array: NDArray[np.generic]) -> str:
    """Return the sha256 over the sha256 of an array's pieces, which several threads take in turn."""
    content = array.reshape(-1).view(np.uint8)
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def file_digest(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def mapped_array(file: Path, shape: tuple[int, ...], kind: str, fix: str) -> NDArray[Any]:
    """Map a .npy file.

    Args:
        file: it.
        shape: that it must have.
        kind: of its numbers, such as ``float32``.
        fix: what to do where it is not so, for the sentence.

    Raises:
        DataError: it is missing, cut short, no array, or another one.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise DataError(f"{file} is missing: {fix}.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): make it readable, or {fix}.") from error
    except (EOFError, ValueError) as error:
        raise DataError(f"{file} is cut short or no array ({error}): {fix}.") from error
    if array.shape != shape or array.dtype != np.dtype(kind):
        raise DataError(
            f"{file} holds {array.dtype} {list(array.shape)} where the manifest says {kind} {list(shape)}: {fix}."
        )
    return array
