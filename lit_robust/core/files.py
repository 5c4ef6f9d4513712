"""Writing files so that nobody ever sees one half-written, and opening only what is a file."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_robust.core.errors import UserError

# Read once, while no other thread makes files: to ask for it is to change it.
UMASK = os.umask(0)
os.umask(UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place when the block ends without error.

    Parent folders are made. On an error nothing is left behind, and an older file stays as it was.

    Args:
        path: where the finished file shall stand.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(
            f"Cannot write in {path.parent} ({error.strerror}): choose a folder that can be written."
        ) from error
    beside = Path(name)
    try:
        yield beside
        # mkstemp makes files only their owner may read; shared data must follow the umask instead.
        beside.chmod(0o666 & ~UMASK)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): free some space or choose another folder.") from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, all of it or nothing."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def open_regular(path: Path) -> int:
    """Return a descriptor for reading a regular file; opening a named pipe would wait for ever, a device has no end.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()
