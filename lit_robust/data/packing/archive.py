"""A source that is an archive: told by its first bytes, and where compressed unpacked to one plain tar."""

import bz2
import gzip
import lzma
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import atomic_path
from lit_robust.data.packing.tree import Tree
from lit_robust.shards.write import remove_leftovers

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
    beside ``output``, which is gone when the block ends; what a killed run left of it goes at the next start.

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


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise a UserError where the disk of a folder, which may be yet to make, has fewer than ``needed`` bytes free."""
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{what} need {_size(needed)}, but the disk of {there} has {_size(free)} free: "
            "free some space, or choose a folder on another disk."
        )


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
        atomic_path(plain) as beside,
        beside.open("wb") as file,
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


def _size(count: int) -> str:
    return f"{count / 1e9:,.3f} GB"
