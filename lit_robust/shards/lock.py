"""Doing something once where several processes want it at the same time."""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(places: Sequence[Path]) -> Iterator[None]:
    """Hold the lock of a file that is to be made, for as long as the block takes; wait until it is free.

    The system releases the lock when its holder ends, however it ends. The lock's file, ``<name>.lock`` beside the
    first place that can be written, stays: to remove it would let two processes in. Where nothing can be written or
    the file system has no locks, there is no waiting.

    Args:
        places: where the file may be made, the best place first.
    """
    descriptor = _locked(places)
    try:
        yield
    finally:
        if descriptor is not None:
            # A process that was forked meanwhile may hold the file open too; closing alone would leave it locked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _locked(places: Sequence[Path]) -> int | None:
    for place in places:
        path = place.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            log.debug("There is no lock in %s (%s).", path.parent, error)
            continue
        try:
            _wait(descriptor, path)
            return descriptor
        except OSError as error:
            os.close(descriptor)
            log.info("%s cannot be locked (%s): each process works on its own.", path, error)
    return None


def _wait(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("Another process holds %s and makes the index: waiting for it.", path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
