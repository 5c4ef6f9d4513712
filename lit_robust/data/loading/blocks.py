"""Memory for batches; a worker process fills the same again as soon as nobody has the batch that was in it."""

import fcntl
import logging
import math
import mmap
import os
from functools import lru_cache

import torch
from torch import Tensor
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import get_worker_info

from lit_robust.core.errors import UserError

KEPT = 4  # torch asks a worker for two batches ahead, and a step of training holds one or two.
log = logging.getLogger(__name__)


class Block:
    """Bytes that this process writes and others read, and whether anybody still has them.

    The kernel keeps that count. What is handed over is a mapping of the file that was opened for it alone and is
    locked (flock(2)); the lock ends with the last descriptor and the last mapping of that opening, in whatever process
    they are. Linux: a mapping holds the opened file (mm/mmap.c), and flock's locks go when that goes (fs/locks.c,
    ``locks_remove_file``).

    Args:
        size: bytes, at least 1.

    Raises:
        OSError: there is no memory, no descriptor is left, or the system has no such files.
    """

    def __init__(self, size: int) -> None:
        self._descriptor = -1
        self.size = size
        self._descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, size)
        self.content = torch.frombuffer(mmap.mmap(self._descriptor, size), dtype=torch.uint8)

    def is_free(self) -> bool:
        """Return whether nobody has what was handed over; it is this process's alone to ask."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return True

    def hand_over(self) -> Tensor:
        """Return uint8 ``[size]`` that other processes can have without a copy; the block is in use until it is gone.

        Raises:
            OSError: no descriptor is left, or ``/proc`` is missing.
        """
        # A duplicate would share one lock with all other batches: the file is opened anew.
        opened = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(opened, fcntl.LOCK_SH)
            storage = torch.UntypedStorage._new_shared_fd_cpu(opened, self.size)  # type: ignore[attr-defined]
        finally:
            os.close(opened)  # The storage has a duplicate.
        return torch.empty(0, dtype=torch.uint8).set_(storage)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class BatchMemory:
    """Where one batch is put together.

    Args:
        pixels: uint8 of the batch's shape, not yet set; written until it is `finished`.
        block: that they are in, where another process is to have them; free, and of as many bytes.
    """

    def __init__(self, pixels: Tensor, block: Block | None = None) -> None:
        self.pixels = pixels
        self._block = block

    def finished(self) -> Tensor:
        """Return the pixels to hand over; ``pixels`` must not be written any more."""
        return self.pixels if self._block is None else self._block.hand_over().view(self.pixels.shape)


class Blocks:
    """The blocks of one process: at most `KEPT`, apart from those that somebody else still has."""

    def __init__(self) -> None:
        self.kept: list[Block] = []

    def free(self, size: int) -> Block:
        """Return a block of ``size`` bytes that nobody has, a used one if there is any.

        Raises:
            OSError: see `Block`.
        """
        for block in self.kept:
            if block.size == size and block.is_free():
                return block
        if len(self.kept) == KEPT:
            # Whoever has it keeps it; it is only not used again.
            del self.kept[0]
        self.kept.append(Block(size))
        return self.kept[-1]


def batch_memory(shape: tuple[int, ...]) -> BatchMemory:
    """Return uint8 memory for a batch; in a worker process it is handed to the main one without a copy.

    torch's own ``default_collate`` takes new shared memory for each batch, and needs all its images side by side
    first. To find, clear and map new pages costs more than to copy the pixels into them: for images of 224 px about
    a tenth of a millisecond each. Measured with a worker that decodes, resizes and crops JPEGs of 500 x 375 px: 1.44 ms
    of processor time an image, and 1.55 ms with new shared memory for each batch.

    Args:
        shape: of the batch, ``[B, H, W, 3]``.

    Raises:
        UserError: there is not so much memory.
    """
    size = math.prod(shape)
    # By the strategy of named files torch would copy a block once more.
    by_name = get_sharing_strategy() != "file_descriptor"  # type: ignore[no-untyped-call]
    try:
        if get_worker_info() is None:
            return BatchMemory(torch.empty(shape, dtype=torch.uint8))
        if by_name or not locks_follow_mappings():
            storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
            return BatchMemory(torch.empty(0, dtype=torch.uint8).set_(storage).view(shape))
        block = _blocks(os.getpid()).free(size)
        return BatchMemory(block.content.view(shape), block)
    except (OSError, RuntimeError) as error:
        # The kernel's words for it, and torch's.
        if "allocate" not in str(error):
            raise
        count, height, width, _ = shape
        raise UserError(
            f"There is no memory for a batch of {count} images of {width} x {height} px, {size / 1e9:.1f} GB: make "
            "batch_size or eval_batch_size smaller."
        ) from error


@lru_cache(1)
def locks_follow_mappings() -> bool:
    """Return whether this system can say who has a block, tried once a process.

    Not all can: memfd_create(2) and ``/proc`` are Linux's, and a sandbox may have neither.
    """
    if not hasattr(os, "memfd_create"):
        return False
    try:
        block = Block(mmap.PAGESIZE)
        batch = block.hand_over()
    except OSError as error:
        log.info("Memory of batches is not used again here (%s).", error)
        return False
    held = not block.is_free()
    del batch
    return held and block.is_free()


@lru_cache(1)
def _blocks(process: int) -> Blocks:
    """Return the blocks of this process; a forked one must not write into its parent's."""
    return Blocks()
