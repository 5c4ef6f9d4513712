"""Reading any sample of a split by its number, in any process."""

import os
import resource
from functools import lru_cache
from pathlib import Path

from lit_robust.core.errors import DataError, printable
from lit_robust.shards.index import ShardIndex
from lit_robust.shards.tar import read_exactly


class OpenShard:
    """A tar open for positional reads, closed when nobody holds it any more.

    Args:
        path: of the tar.
        size: bytes that the index found.

    Raises:
        DataError: it cannot be opened, or has another size.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._descriptor = -1
        self.path = path
        self.size = size
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"The shard {path} cannot be opened ({error.strerror}): check its path and mode."
            ) from error
        found = os.fstat(self._descriptor).st_size
        if found != size:
            raise DataError(
                f"The shard {path} has {found} bytes, but had {size} when it was indexed: start the run again."
            )

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset``; a DataError names the place where they are not to be had."""
        return read_exactly(self._descriptor, self.path, offset, length, self.size)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


# ImageNet-C alone has 75 readers, of 50 shards each.
_shared_open = lru_cache(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 1))(OpenShard)


class IndexedReader:
    """Gives the encoded image of any sample.

    Positional reads share no place in the file, so forked processes and threads may use one reader; a pickled reader
    opens the shards anew.

    Args:
        index: of the split.
        max_open: shards kept open; the one used longest ago is closed first. None keeps half as many as the system
            lets a process open, over all readers of the process that say so.
    """

    def __init__(self, index: ShardIndex, max_open: int | None = None) -> None:
        self.index = index
        self.max_open = max_open
        self._open = _shared_open if max_open is None else lru_cache(max_open)(OpenShard)

    def __reduce__(self) -> tuple[type["IndexedReader"], tuple[ShardIndex, int | None]]:
        return IndexedReader, (self.index, self.max_open)

    def __len__(self) -> int:
        return len(self.index)

    def key(self, number: int) -> str:
        """Return the key of sample ``number`` (0 to N-1)."""
        return self.index.key(number)

    def name(self, number: int) -> str:
        """Return what to call sample ``number`` in a message: its key and its tar."""
        return printable(f"{self.key(number)} in {self.index.shard_path(number)}")

    def image_bytes(self, number: int) -> bytes:
        """Return the encoded image of sample ``number`` (0 to N-1).

        Raises:
            DataError: the shard is gone, changed its size, or cannot be read; names shard and byte.
        """
        if not 0 <= number < len(self.index):
            raise IndexError(f"sample {number} of {len(self.index)}")
        place = int(self.index.shard[number])
        shard = self._open(self.index.folder / self.index.shards[place], self.index.shard_sizes[place])
        return shard.read(int(self.index.offset[number]), int(self.index.length[number]))
