"""Class-sorted keys in pieces that are small enough for a processor's cache and hold few classes each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_robust.core.errors import UserError

KEYS = 4096  # Of 2,048 numbers these are 32 MiB in fp32; the similarities of 256 queries to them 4 MiB.
KEYS_ON_GPU = 16384  # Wide enough for a matrix product to fill the device.
CLASSES = 64  # More would make the product that sums over classes matter beside the one of the similarities.


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of class-sorted keys.

    Attributes:
        rows: which rows.
        first: the class of the first of them.
        last: the class of the last of them.
        local: int64 ``[rows]``, each row's class less ``first``.
    """

    rows: slice
    first: int
    last: int
    local: Tensor

    @property
    def classes(self) -> slice:
        """The classes from the first to the last, those without keys included."""
        return slice(self.first, self.last + 1)

    def indicator(self, like: Tensor) -> Tensor:
        """Return ``[rows, classes]``, 1 where a row is of a class, in the type and on the device of ``like``."""
        numbers = torch.arange(self.last + 1 - self.first, device=self.local.device)
        return (self.local[:, None] == numbers).to(like)


def chunks_of(labels: Tensor, keys: int = KEYS, classes: int = CLASSES) -> list[Chunk]:
    """Cut class-sorted keys into chunks.

    Args:
        labels: int64 ``[K]``, ascending.
        keys: the most rows of a chunk.
        classes: the most classes a chunk reaches over.

    Raises:
        UserError: the labels do not ascend.
    """
    if bool((labels[1:] < labels[:-1]).any()):
        raise UserError("The labels of a memory must ascend, so that a class is a stretch of rows: sort its rows.")
    return list(_cut(labels, keys, classes))


def _cut(labels: Tensor, keys: int, classes: int) -> Iterator[Chunk]:
    start, count = 0, len(labels)
    while start < count:
        first = int(labels[start])
        within = labels[start : start + keys]
        end = start + int((within < first + classes).sum())
        yield Chunk(slice(start, end), first, int(labels[end - 1]), labels[start:end] - first)
        start = end


def class_order(labels: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
    """Return the row of each sample in a class-sorted memory: by class, and within one by the sample's number.

    Example:
        >>> class_order([2, 0, 2, 1]).tolist()
        [2, 0, 3, 1]
    """
    order = np.argsort(np.asarray(labels), kind="stable")
    rows = np.empty(len(order), dtype=np.int64)
    rows[order] = np.arange(len(order))
    return rows
