"""Decoding every image of a split, to find the broken ones."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import open_regular
from lit_robust.core.processes import end_with_parent
from lit_robust.shards.decode import decode_rgb
from lit_robust.shards.labels import text
from lit_robust.shards.merge import Arrays
from lit_robust.shards.tar import Defect, read_exactly

PIECE = 256  # images a task: some seconds' work at most


class Piece(NamedTuple):
    """Some images of one shard.

    Attributes:
        folder: of the split.
        shard: the tar's path relative to it.
        offset: ``[P]`` byte where each image begins.
        length: ``[P]`` bytes of each.
        keys: all keys together.
        key_starts: ``[P + 1]``, where in ``keys`` each begins, counted from another place.
    """

    folder: Path
    shard: str
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    keys: bytes
    key_starts: NDArray[np.int64]

    def images(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield byte, length and key of each image."""
        starts = (self.key_starts - self.key_starts[0]).tolist()
        for place, (offset, length) in enumerate(zip(self.offset.tolist(), self.length.tolist(), strict=True)):
            yield offset, length, self.keys[starts[place] : starts[place + 1]]


def broken_images(folder: Path, files: Sequence[str], arrays: Arrays, workers: int, progress: bool) -> list[Defect]:
    """Decode all images and return those that are broken.

    Args:
        folder: of the split.
        files: its tars, relative to ``folder``.
        arrays: of `merge_scans`.
        workers: processes, at least 1.
        progress: draw a progress bar for what takes over 2 s.

    Raises:
        UserError: a process was killed.
    """
    found: list[Defect] = []
    bar = tqdm(desc="decoding", total=len(arrays["offset"]), unit="image", delay=2, disable=not progress)
    with bar, ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        try:
            pieces = list(_pieces(folder, files, arrays))
            for piece, broken in zip(pieces, pool.map(decode_piece, pieces), strict=True):
                found += broken
                bar.update(len(piece.offset))
        except BrokenProcessPool as error:
            raise UserError(
                "A process that decodes images was killed, probably for want of memory: give fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def decode_piece(piece: Piece) -> list[Defect]:
    """Decode some images of one shard and return the broken ones; runs in a process of its own."""
    path = piece.folder / piece.shard
    found = []
    try:
        descriptor = open_regular(path)
    except OSError as error:
        return [Defect(piece.shard, int(piece.offset[0]), f"it cannot be opened again ({error.strerror})")]
    try:
        for offset, length, key in piece.images():
            try:
                data = read_exactly(descriptor, path, offset, length, offset + length)
                decode_rgb(data, text(key))
            except DataError as error:
                # The sentence without its advice, as others follow it.
                found.append(Defect(piece.shard, offset, str(error).rpartition(": ")[0]))
    finally:
        os.close(descriptor)
    return found


def _pieces(folder: Path, files: Sequence[str], arrays: Arrays) -> Iterator[Piece]:
    starts = np.concatenate([np.zeros(1, np.int64), arrays["key_ends"]])
    bounds = np.searchsorted(arrays["shard"], np.arange(len(files) + 1))
    for place, file in enumerate(files):
        for begin in range(bounds[place], bounds[place + 1], PIECE):
            end = min(begin + PIECE, bounds[place + 1])
            yield Piece(
                folder,
                file,
                arrays["offset"][begin:end],
                arrays["length"][begin:end],
                arrays["keys"][starts[begin] : starts[end]].tobytes(),
                starts[begin : end + 1],
            )
