"""What a source holds, be it a folder, a tar or a compressed tar: files by name, and their bytes."""

import bz2
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import atomic_path, check_space
from lit_robust.shards.read import OpenShard
from lit_robust.shards.scan import file_state
from lit_robust.shards.tar import Member, PositionalTar, read_exactly
from lit_robust.shards.write import remove_leftovers

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
        found = _tar_files(source, name)
        if source.is_dir():
            above = (folder.stat() for folder in source.resolve().parents)
            found = _folder_files(source, "", tuple((status.st_dev, status.st_ino) for status in above))
        listed = tqdm(found, desc="listing", unit="file", delay=2)
        # With the least of all characters as separator, folders sort as their names do.
        self.files = sorted(
            (file for file in listed if not _is_hidden(file.name)), key=lambda file: file.name.replace("/", "\0")
        )
        states = {tar: file_state(tar.stat()) for tar in {file.tar for file in self.files} if tar is not None}
        self._open = lru_cache(64)(lambda tar: OpenShard(tar, states[tar]))

    def folders(self, below: str) -> set[str]:
        """Return the names of the folders right below another, also of empty ones; a tar has only those with files."""
        inside = [file.name[len(below) :] for file in self.files if file.name.startswith(below)]
        named = {name.split("/")[0] for name in inside if "/" in name}
        return named | folders_in(self.source / below) if self.source.is_dir() else named

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
            raise DataError(f"{path} cannot be read ({error.strerror}): repair it, and run this again.") from error
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
    return DataError(f"{error.filename or folder} cannot be read ({error.strerror}): repair or remove it.")


def _is_hidden(name: str) -> bool:
    # Such as `.ipynb_checkpoints`; macOS puts `__MACOSX` and `._x` into archives, and `.DS_Store` everywhere.
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


CHUNK = 1 << 20
Opener = Callable[[Path], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]
OPENERS: dict[bytes, Opener] = {b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ\0": lzma.LZMAFile}
# What is not read here: its name, and the program that turns it into what is.
FOREIGN = {
    b"PK": ("zip archive", "unzip"),
    b"7z\xbc\xaf": ("7z archive", "7z x"),
    b"Rar!": ("rar archive", "unrar x"),
    b"(\xb5/\xfd": ("file compressed by zstd", "tar --zstd -xf"),
}
ARCHIVES = (".zip", ".7z", ".rar", ".zst", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@contextmanager
def open_source(source: Path, output: Path, split: str) -> Iterator[Tree]:
    """Yield the files of a folder or tar.

    A plain tar is read where it lies. One compressed by gzip, bzip2 or xz is first decompressed into one hidden file
    next to ``output``, which is gone when the block ends; what a killed run left of it goes at the next start.

    Args:
        source: folder, tar or compressed tar.
        output: folder of the shards.
        split: name of the split; another split may be packed into the folder at the same time.

    Raises:
        UserError: it cannot be read, is an archive of another kind, or there is no space for the decompressed tar.
        DataError: the archive is damaged, or not safe to read.
    """
    opener = None if source.is_dir() else _opener(source)
    if opener is None:
        yield Tree(source, str(source))
        return
    plain = output.resolve().parent / f".{output.resolve().name}.{split}.unpacked.tar"
    plain.unlink(missing_ok=True)
    remove_leftovers(plain.parent, re.escape(plain.name))
    try:
        _decompress(source, opener, plain)
        yield Tree(plain, str(source))
    finally:
        plain.unlink(missing_ok=True)


def check_source(source: Path, output: Path) -> None:
    """Raise a UserError where there is no source, or the output lies in it."""
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"The shards in {output} would lie among the images of {source}: choose another folder.")
    if not source.exists():
        raise UserError(f"There is no folder {source}: unpack the images there, or name the tar that holds them.")


def _opener(source: Path) -> Opener | None:
    try:
        with source.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): check its mode.") from error
    for magic, (kind, command) in FOREIGN.items():
        if start.startswith(magic):
            raise UserError(f"{source} is a {kind}: unpack it with `{command}`, and name the folder.")
    if start[257:262] != b"ustar" and not any(start.startswith(magic) for magic in OPENERS):
        raise DataError(f"{source} is neither a folder nor a tar: name a folder, a tar or a compressed tar.")
    return next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)


def _decompress(source: Path, opener: Opener, plain: Path) -> None:
    # How large it becomes, no format tells for certain (gzip keeps the size modulo 4 GiB): reading twice does.
    size = 0
    with tqdm(desc=f"measuring {source.name}", unit="B", unit_scale=True, delay=2) as progress:
        for chunk in _chunks(source, opener):
            size += len(chunk)
            progress.update(len(chunk))
    check_space(plain.parent, size, f"The decompressed bytes of {source}")
    with (
        atomic_path(plain) as temporary,
        temporary.open("wb") as file,
        tqdm(desc=f"decompressing {source.name}", total=size, unit="B", unit_scale=True, delay=2) as progress,
    ):
        for chunk in _chunks(source, opener):
            file.write(chunk)
            progress.update(len(chunk))


def _chunks(source: Path, opener: Opener) -> Iterator[bytes]:
    try:
        with opener(source) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{source} is damaged or not whole ({error}): copy or download it again.") from error
