"""Writing files so that nobody ever sees one half-written."""

import os
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
