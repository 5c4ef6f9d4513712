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

from lit_robust.errors import DataError, UserError
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
        check_digest: read all keys once and compare their digest; else the sizes alone are compared.

    Raises:
        UserError: there is no finished memory in ``folder``.
        DataError: a file of it is missing, cut short, or has changed.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if not manifest.keys_sha256:
        raise UserError(f"The memory in {folder} is not finished: run the `lit-robust fit` that builds it again.")
    keys = _mapped(folder / KEYS, (manifest.count, manifest.dimensions), manifest.key_type)
    labels = _mapped(folder / LABELS, (manifest.count,), "int64")
    norms = _mapped(folder / NORMS, (manifest.count,), "float32")
    if check_digest:
        for name, array, said in ((KEYS, keys, manifest.keys_sha256), (LABELS, labels, manifest.labels_sha256)):
            if array_digest(array) != said:
                raise DataError(f"{folder / name} has changed since the memory was built: build it again, or copy it.")
    return Memory(folder, manifest, keys, labels, norms)


def array_digest(array: NDArray[np.generic]) -> str:
    """Return the sha256 over the sha256 of an array's pieces, which several threads take in turn."""
    content = array.reshape(-1).view(np.uint8)
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _mapped(file: Path, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file} is missing: copy the whole memory, or build it again.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): make it readable, or build the memory again.") from error
    except ValueError as error:
        raise DataError(f"{file} is cut short or no array ({error}): copy it again, or build the memory again.") from (
            error
        )
    if array.shape != shape or array.dtype != np.dtype(kind):
        raise DataError(
            f"{file} holds {array.dtype} {list(array.shape)} where the manifest says {kind} {list(shape)}: copy the "
            "whole memory, or build it again."
        )
    return array
