"""Doing something once where several processes want it at the same time."""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lit_robust.core.errors import UserError

log = logging.getLogger(__name__)
LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


@contextmanager
def one_at_a_time(places: Sequence[Path]) -> Iterator[None]:
    """Hold the lock of a file that is to be made, for as long as the block takes; wait until it is free.

    The system releases the lock when its holder ends, however it ends. The lock's file, ``<name>.lock`` beside the
    first place that can be written, stays: to remove it would let two processes in. Where nothing can be written or
    the file system has no locks, there is no waiting.

    Args:
        places: where the file may be made, the best place first.
    """
    with ExitStack() as stack:
        for path in (place.with_suffix(".lock") for place in places):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(os.open(path, LOCK_FILE, 0o666), path))
                break
            except OSError as error:
                log.info("%s cannot be locked (%s): each process works on its own.", path, error)
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder's info file against other writers, for as long as the block takes; wait until it is free.

    Nothing is left in the folder, but where its file system locks no folders.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), folder))
        except OSError:
            # Network file systems lock what is open for writing alone, which a folder never is.
            stack.enter_context(one_at_a_time([folder / ".lit_robust" / "info"]))
        yield


@contextmanager
def sole_writer(folder: Path, stem: str, what: str | None = None) -> Iterator[None]:
    """Hold the tars of a split against another writer, for as long as the block takes.

    The lock's file, ``.<stem>.lock``, is removed at the end where it still is the one that was locked; so two never
    hold it. Where the file system has no locks, there is none.

    Args:
        folder: of the tars; made where it is missing, and removed again where it stays empty.
        stem: first part of the tars' names.
        what: what to call them in messages; None for ``<stem>-*.tar``.

    Raises:
        UserError: another process writes them, or the folder cannot be written.
    """
    path, what = folder / f".{stem}.lock", what or f"{stem}-*.tar"
    with ExitStack() as stack:
        if not folder.exists():
            stack.callback(_remove_empty, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, LOCK_FILE, 0o666)
        except OSError as error:
            raise UserError(
                f"Cannot write in {folder} ({error.strerror}): choose a folder that can be written."
            ) from error
        try:
            stack.enter_context(_locked(descriptor, path, waits=False))
            if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
                raise UserError(f"Another run has just written {what} in {folder}: start this again.")
        except BlockingIOError as error:
            raise UserError(f"Another run writes {what} in {folder}: wait for it, or end it.") from error
        except OSError as error:
            log.info("%s cannot be locked (%s): a second run at the same time would not be noticed.", path, error)
        stack.callback(path.unlink, missing_ok=True)
        yield


@contextmanager
def _locked(descriptor: int, path: Path, waits: bool = True) -> Iterator[None]:
    """Hold the lock of an open file, and close it at the end.

    Raises:
        BlockingIOError: another process holds it, and this one is not to wait.
        OSError: the file system has no locks.
    """
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits:
                raise
            log.info("Another process holds %s: waiting for it.", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # A process that was forked meanwhile may hold the file open too; closing alone would leave it locked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
