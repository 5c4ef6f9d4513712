"""What a source holds, be it a folder or a tar: files by name, and their bytes."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError
from lit_robust.shards.read import OpenShard
from lit_robust.shards.scan import file_state
from lit_robust.shards.tar import Member, PositionalTar, read_exactly

# ImageNet's training set comes as one tar of a tar a class, `ILSVRC2012_img_train.tar`.
CLASS_TAR = re.compile(r"n\d{8}\.tar")


class File(NamedTuple):
    """One file of a source.

    Attributes:
        name: path below the source, with ``/``.
        size: bytes.
        tar: the tar that holds it; None where it is a file of its own.
        offset: byte in the tar where its content begins.
    """

    name: str
    size: int
    tar: Path | None
    offset: int


class Tree:
    """All files of a folder or tar but hidden ones, in the order of their names' parts.

    A tar is read where it lies and never unpacked, so no name in it can lead anywhere. Tars of a class inside it, or
    inside the folder, count as folders of the class's name.

    Args:
        source: folder, or tar that is not compressed.
        name: what to call it in messages.

    Raises:
        DataError: it cannot be read, a tar is malformed or holds links, devices or names that lead out of it.
    """

    def __init__(self, source: Path, name: str) -> None:
        self.source = source
        self.name = name
        found = _folder_files(source, "", _folders_above(source)) if source.is_dir() else _tar_files(source, name)
        listed = tqdm(found, desc="listing", unit="file", delay=2)
        self.files = sorted((file for file in listed if not _is_hidden(file.name)), key=_order)
        states = {tar: file_state(tar.stat()) for tar in {file.tar for file in self.files} if tar is not None}
        self._open = lru_cache(64)(lambda tar: OpenShard(tar, states[tar]))

    def folders(self, below: str) -> set[str]:
        """Return the names of the folders right below another, also of empty ones; a tar tells of those with files."""
        named = {file.name[len(below) :].split("/")[0] for file in self.files if _is_deeper(file.name, below)}
        if not self.source.is_dir():
            return named
        return named | folders_in(self.source / below)

    def read(self, file: File) -> bytes:
        """Return a file's content; any thread may ask.

        Raises:
            DataError: it is gone, has another size than when it was listed, or cannot be read.
        """
        if file.tar is not None:
            return self._open(file.tar).read(file.offset, file.size)
        path = self.source / file.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): mend it, and run this again.") from error
        if len(content) != file.size:
            raise DataError(f"{path} had {file.size} bytes, now {len(content)}: let nobody write there, and run again.")
        return content


class NestedTar(PositionalTar):
    """A tar that is a member of another.

    Args:
        name: what to call it in errors.
        descriptor: of the outer file, open for reading.
        begin: byte of the outer file where it begins.
        length: its bytes.
    """

    def __init__(self, name: str, descriptor: int, begin: int, length: int) -> None:
        super().__init__(name, descriptor, length)
        self._outer = descriptor
        self._begin = begin

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset`` of the inner tar; raises a DataError where it ends before."""
        content = read_exactly(self._outer, self.path, self._begin + offset, length, self._begin + self.length)
        if len(content) < length:
            raise DataError(f"{self.path} ends within byte {offset + length}: copy or download it again.")
        return content


def _tar_files(path: Path, name: str) -> Iterator[File]:
    """Yield the members of a tar, those of class tars in it with the class before their name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{name} cannot be opened ({error.strerror}): check its path and mode.") from error
    try:
        length = os.fstat(descriptor).st_size
        for member in PositionalTar(name, descriptor, length).members():
            label = _safe_name(member, name)
            if CLASS_TAR.fullmatch(label.rpartition("/")[2]) is None:
                yield File(label, member.length, path, member.offset)
                continue
            inner = f"{name}, in its member {label}"
            for part in NestedTar(inner, descriptor, member.offset, member.length).members():
                below = f"{label.removesuffix('.tar')}/{_safe_name(part, inner)}"
                yield File(below, part.length, path, member.offset + part.offset)
    finally:
        os.close(descriptor)


def _safe_name(member: Member, where: str) -> str:
    if member.problem is not None:
        found = member.problem.found
        raise DataError(f"{where} is not packed, as at byte {found.offset} {found.what}: get it from its publisher.")
    return os.fsdecode(member.name)


def _folders_above(folder: Path) -> tuple[tuple[int, int], ...]:
    return tuple((status.st_dev, status.st_ino) for status in (above.stat() for above in folder.resolve().parents))


def _folder_files(folder: Path, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[File]:
    """Yield the files under a folder; links are followed, as people link whole classes."""
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"The link {folder} leads to a folder that it lies in: remove it.")
        for entry in os.scandir(folder):
            name = below + entry.name
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _folder_files(folder / entry.name, f"{name}/", (*above, here))
            elif CLASS_TAR.fullmatch(entry.name):
                if (folder / entry.name).with_suffix("").is_dir():
                    raise UserError(
                        f"{folder} holds both the folder {entry.name.removesuffix('.tar')} and {entry.name}, which "
                        "would be one class twice: move the tars of unpacked classes elsewhere, or remove the folders."
                    )
                for file in _tar_files(folder / entry.name, str(folder / entry.name)):
                    yield file._replace(name=f"{name.removesuffix('.tar')}/{file.name}")
            elif entry.is_file() or entry.is_symlink():
                yield File(name, entry.stat().st_size, None, 0)
    except OSError as error:
        raise _unreadable(error, folder) from error


def folders_in(folder: Path) -> set[str]:
    """Return the names of the folders right below another, but hidden ones.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name)}
    except OSError as error:
        raise _unreadable(error, folder) from error


def _unreadable(error: OSError, folder: Path) -> UserError:
    return DataError(f"{error.filename or folder} cannot be read ({error.strerror}): mend or remove it.")


def _is_deeper(name: str, below: str) -> bool:
    return name.startswith(below) and "/" in name[len(below) :]


def _order(file: File) -> str:
    # With the least of all characters as separator, folders sort as their names do.
    return file.name.replace("/", "\0")


def _is_hidden(name: str) -> bool:
    # Such as `.ipynb_checkpoints`; macOS puts `__MACOSX` and `._x` into archives, and `.DS_Store` everywhere.
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
