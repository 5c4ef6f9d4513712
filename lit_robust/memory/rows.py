"""Writing rows of a large .npy file where they belong, in any order and by several processes."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = 4096  # Bytes of a file before its numbers: a page of memory.


def make_array(file: Path, shape: tuple[int, ...], kind: str) -> None:
    """Make a .npy file of zeros, a hole on disk, whose numbers begin with a page: rows of 4 KiB share none.

    Args:
        file: it.
        shape: of the array.
        kind: of its numbers, such as ``float32``.
    """
    header = np.lib.format.magic(1, 0) + (PAGE - 10).to_bytes(2, "little")
    facts = str({"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape})
    with file.open("wb") as stream:
        stream.write(header + facts.encode().ljust(PAGE - 11) + b"\n")
        stream.truncate(PAGE + int(np.prod(shape)) * np.dtype(kind).itemsize)


def write_rows(file: Path, rows: NDArray[np.int64], values: NDArray[np.generic]) -> None:
    """Write some rows of a file of `make_array`; neighbouring ones in one go.

    Args:
        file: it.
        rows: int64 ``[B]``, at least one, ascending.
        values: ``[B, d]``, of the file's own type.
    """
    size = values[0].nbytes
    content = np.ascontiguousarray(values).data.cast("B")
    begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    handle = os.open(file, os.O_WRONLY)
    try:
        for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
            left, place = content[begin * size : end * size], PAGE + int(rows[begin]) * size
            while len(left):
                written = os.pwrite(handle, left, place)
                left, place = left[written:], place + written
    finally:
        os.close(handle)
