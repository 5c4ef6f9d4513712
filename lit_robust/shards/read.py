"""Reading any sample of a split by its number, in any process."""

import os
import resource
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from lit_robust.core.errors import DataError, printable
from lit_robust.core.files import open_regular
from lit_robust.shards.index import ShardIndex
from lit_robust.shards.scan import file_state, scan_open, skip
from lit_robust.shards.tar import read_exactly


class OpenShard:
    """A tar open for positional reads, closed when nobody holds it any more.

    Before every read it must still be what was indexed: a shard may be written again in place, under the descriptor.

    Args:
        path: of the tar.
        state: of the tar when it was indexed, see `lit_robust.shards.scan.file_state`.
        headers: digest over its headers, see `lit_robust.shards.scan.ShardScan`; None where nobody took one.

    Raises:
        DataError: it cannot be opened, or is another than was indexed.
    """

    def __init__(self, path: Path, state: tuple[int, ...], headers: str | None = None) -> None:
        self._descriptor = -1
        self.path = path
        self._state = state
        self._headers = headers
        try:
            self._descriptor = open_regular(path)
        except OSError as error:
            raise DataError(
                f"The shard {path} cannot be opened ({error.strerror}): check its path and mode."
            ) from error
        self._check()

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset``.

        Raises:
            DataError: the tar is another than was indexed, or they are not to be had; names the place.
        """
        self._check()
        return read_exactly(self._descriptor, self.path, offset, length, self._state[0])

    def _check(self) -> None:
        found = file_state(os.fstat(self._descriptor))
        if found == self._state:
            return
        # The file may have been given a mode, a name or an inode: then its headers are those of the index.
        same = found[:2] == self._state[:2]
        if same and self._headers is not None:
            same = scan_open(self.path, self._descriptor, on_defect=skip).headers == self._headers
        if not same:
            raise DataError(f"The shard {self.path} has changed since it was indexed: start the run again.")
        self._state = found

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


CHUNK = 4 << 20  # bytes that are read ahead at once
AHEAD = 64  # shards of a reader that count as read ahead: more than the lanes of an order in blocks read at once.


@lru_cache(1)
def _queue_of(_process: int) -> SimpleQueue[Path]:
    """Return what this process's thread takes shards to read ahead from; a daemon, which no process waits for."""
    queue: SimpleQueue[Path] = SimpleQueue()
    Thread(target=_read_through, args=(queue,), name="read ahead", daemon=True).start()
    return queue


def _read_through(queue: SimpleQueue[Path]) -> None:
    room = bytearray(CHUNK)
    while True:
        # What cannot be read is an error to whoever asks for a sample of it.
        with suppress(OSError), queue.get().open("rb", buffering=0) as shard:
            while shard.readinto(room):
                pass


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
        self._ahead: dict[int, None] = {}
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

    def read_ahead(self, number: int) -> None:
        """Have the whole shard of a sample read into the system's cache, from beginning to end, by a thread.

        For an order that keeps to few shards at a time, on disks that are slow at scattered reads. Once for each shard,
        until `AHEAD` others came.
        """
        place = int(self.index.shard[number])
        if place not in self._ahead:
            _queue_of(os.getpid()).put(self.index.folder / self.index.shards[place])
            while len(self._ahead) >= AHEAD:
                del self._ahead[next(iter(self._ahead))]
        else:
            del self._ahead[place]
        self._ahead[place] = None

    def image_bytes(self, number: int) -> bytes:
        """Return the encoded image of sample ``number`` (0 to N-1).

        Raises:
            DataError: the shard is gone, has changed, or cannot be read; names shard and byte.
        """
        if not 0 <= number < len(self.index):
            raise IndexError(f"sample {number} of {len(self.index)}")
        place = int(self.index.shard[number])
        path = self.index.folder / self.index.shards[place]
        shard = self._open(path, self.index.shard_states[place], self.index.shard_headers[place])
        return shard.read(int(self.index.offset[number]), int(self.index.length[number]))
