"""Doing something once where several processes want it at the same time."""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lit_robust.errors import UserError

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


@contextmanager
def sole_writer(folder: Path, stem: str) -> Iterator[None]:
    """Hold the tars of a split against another writer, for as long as the block takes.

    The lock's file, ``.<stem>.lock``, is removed at the end where it still is the one that was locked; so two never
    hold it. Where the file system has no locks, there is none.

    Args:
        folder: of the tars; made where it is missing, and removed again where it stays empty.
        stem: first part of the tars' names.

    Raises:
        UserError: another process writes them, or the folder cannot be written.
    """
    path = folder / f".{stem}.lock"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"Cannot write in {folder} ({error.strerror}): choose a folder that can be written.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"Another run writes {stem}-*.tar in {folder}: wait for it, or end it.") from error
        except OSError as error:
            log.info("%s cannot be locked (%s): a second run at the same time would not be noticed.", path, error)
        if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise UserError(f"Another run has just written {stem}-*.tar in {folder}: start this again.")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
