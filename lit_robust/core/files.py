"""Files that are whole or not there, only regular ones opened, full disks named, and locks that end with a process."""

import csv
import errno
import fcntl
import hashlib
import io
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, TextIO

from lit_robust.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # A disk, a quota or a limit of file sizes without room.

# Read once, while no other thread makes files: to ask for it is to change it.
UMASK = os.umask(0)
os.umask(UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; move it into place when the block ends without error.

    Parent folders are made. On an error nothing is left behind, and an older file stays as it was.

    Args:
        path: where the finished file shall stand.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes files only their owner may read; shared data must follow the umask instead.
            temporary.chmod(0o666 & ~UMASK)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses while the block writes into one sentence that names ``path`` and the cure.

    Args:
        path: the file or folder that is written.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = error if isinstance(error, OSError) else full_disk(error)
        if refusal is None:
            raise
        raise UserError(refused_write(path, refusal)) from error


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk that a library, such as ``torch.save``, has wrapped; null where there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def refused_write(path: Path | str, error: OSError) -> str:
    """Return the sentence for a write that the system refuses."""
    cure = "free some space there, or choose another folder" if error.errno in FULL else "choose another folder"
    return f"Cannot write {path} ({error.strerror or error}): {cure}."


def check_space(folder: Path, needed: int, what: str, otherwise: str = "") -> None:
    """Refuse to write what a disk has no room for.

    Args:
        folder: where it is written; it may be yet to make.
        needed: bytes.
        what: what is written, in the plural, to begin the sentence.
        otherwise: a third way out, such as ``set key_type to float16``.

    Raises:
        UserError: the folder's disk has fewer bytes free.
    """
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        ways = ["free some space", "choose a folder on another disk", *([otherwise] if otherwise else [])]
        raise UserError(
            f"{what} need {size_shown(needed)}, but the disk of {there} has {size_shown(free)} free: "
            f"{', '.join(ways[:-1])}, or {ways[-1]}."
        )


def size_shown(count: int) -> str:
    """Return a number of bytes in the unit that it is read best in.

    Example:
        >>> size_shown(999), size_shown(1_234_567_890)
        ('999 B', '1.235 GB')
    """
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.95 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.4g} {units[0]}"


def duration_shown(seconds: float) -> str:
    """Return a time in the unit that it is read best in.

    Example:
        >>> duration_shown(59), duration_shown(90), duration_shown(7200)
        ('less than a minute', '1.5 minutes', '2.0 hours')
    """
    minutes = seconds / 60
    amount, unit = (minutes / 60, "hours") if minutes > 90 else (minutes, "minutes")
    return "less than a minute" if minutes < 1 else f"{amount:.1f} {unit}"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, all of it or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows, at least one, as CSV, whose columns are the keys of the first; all of it or nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def open_regular(path: Path) -> int:
    """Return a descriptor for reading a regular file; opening a named pipe would wait for ever, a device has no end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, all of it or nothing.

    The library's own ``save_file`` hides the system's error in a text.

    Args:
        path: of the file.
        tensors: by name, on any device.
        metadata: texts by name.
    """
    from safetensors.torch import save

    content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, dict(metadata or {}) or None)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def held_alone(path: Path, taken: str = "") -> Iterator[None]:
    """Hold a lock file for as long as the block takes, against other processes.

    The system frees it when this process ends, however it ends: a record lock, which forked workers do not inherit as
    they do one of ``flock``. Where the file system has no locks, there is none. (``filelock`` puts a marker in the
    place of a lock there, which a killed process leaves behind.) Parent folders are made. The file, and made folders
    that stay empty, are removed at the end.

    Args:
        path: of the lock file.
        taken: the sentence where another process, or this one, holds it; empty to wait until it is free.

    Raises:
        UserError: it is held and ``taken`` is given, or the folder cannot be written.
    """
    with _held_here(path.absolute(), taken):
        made = [folder for folder in path.parents if not folder.exists()]
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            while (file := path.open("a")) and not _is_locked(file, path, taken):
                file.close()  # Its last holder has removed it meanwhile.
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


_here: set[Path] = set()
_changed = Condition()


@contextmanager
def _held_here(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file against the other threads of this process, which a record lock does not keep out."""
    with _changed:
        if taken and path in _here:
            raise UserError(taken)
        _changed.wait_for(lambda: path not in _here)
        _here.add(path)
    try:
        yield
    finally:
        with _changed:
            _here.discard(path)
            _changed.notify_all()


def _is_locked(file: TextIO, path: Path, taken: str) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise UserError(taken) from error
    except OSError as error:
        log.info("%s cannot be locked (%s): a second process would not be noticed.", path, error)
        return True
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def file_sha256(path: Path) -> str:
    """Return the sha256 of a regular file's content, in hexadecimal digits.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recipes_folder() -> Path:
    """Return the folder of the recipes: next to the package in a clone, inside it where a wheel was installed.

    Raises:
        UserError: there is none.
    """
    package = Path(__file__).parents[1]
    for place in (package.parent / "configs", package / "configs"):
        if (place / "toy").is_dir():
            return place
    raise UserError("The recipes are missing: install the package again.")


def of_recipes(path: str) -> Path:
    """Return a path; one in ``configs/`` that is not there is that of the recipes, which are used from any folder."""
    file = Path(path)
    inner = path.removeprefix("configs/")
    return recipes_folder() / inner if inner != path and not file.exists() else file
