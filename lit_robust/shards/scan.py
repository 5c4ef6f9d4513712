"""One strict pass over the headers of a tar: which samples it holds, and where."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lit_robust.errors import DataError
from lit_robust.shards.tar import Member, PositionalTar, defect

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSION = "cls"
NO_LABEL = -1
LONGEST_LABEL = 64
THREADS = 8  # They wait for the file system, not for the processor.


@dataclass(frozen=True)
class ShardScan:
    """The samples of one tar, in its order.

    Attributes:
        size: bytes of the tar.
        modified: when it was last changed, in nanoseconds.
        keys: ``N`` names.
        offset: ``[N]`` int64, byte where the image begins.
        length: ``[N]`` int64, bytes of the image.
        extension: ``[N]`` uint8, place of the image's extension in `IMAGE_EXTENSIONS`.
        label: ``[N]`` int64, class, or -1 where the sample has no ``cls``.
    """

    size: int
    modified: int
    keys: Sequence[bytes]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    extension: NDArray[np.uint8]
    label: NDArray[np.int64]


def scan_shard(path: Path) -> ShardScan:
    """Read the headers and labels of one tar.

    A sample is what lies together under one key, the path up to the first dot of the base name, as in WebDataset. It
    holds one image and may hold a ``cls`` and other members. Hidden files (AppleDouble's ``._x`` among them) and
    ``__meta__`` members belong to no sample.

    Raises:
        DataError: the tar is not well formed, the members of a sample do not lie together, a sample has no image or
            two, a member occurs twice, or a ``cls`` is not a class number.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"The shard {path} cannot be opened ({error.strerror}): check the path and its mode."
        ) from error
    try:
        status = os.fstat(descriptor)
        tar = PositionalTar(path, descriptor, status.st_size)
        rows = []
        seen: set[bytes] = set()
        named = ((*_split_name(path, member), member) for member in tar.members() if not _is_junk(member.name))
        for key, members in groupby(named, key=lambda entry: entry[0]):
            by_extension: dict[str, Member] = {}
            for _, extension, member in members:
                if extension in by_extension:
                    defect(
                        path, member.header, f"sample {_text(key)} has a second {extension}", "write the shard again"
                    )
                by_extension[extension] = member
            begin = min(member.header for member in by_extension.values())
            if key in seen:
                what = f"sample {_text(key)} occurs a second time or its members do not lie together"
                defect(path, begin, what, "write the shard again, each sample once and in one piece")
            seen.add(key)
            rows.append((key, *_image(path, key, begin, by_extension), _label(tar, key, by_extension)))
    finally:
        os.close(descriptor)
    numbers = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 4)
    return ShardScan(
        size=status.st_size,
        modified=status.st_mtime_ns,
        keys=[row[0] for row in rows],
        offset=numbers[:, 0],
        length=numbers[:, 1],
        extension=numbers[:, 2].astype(np.uint8),
        label=numbers[:, 3],
    )


def scan_shards(paths: Sequence[Path], progress: bool) -> list[ShardScan]:
    """Scan several tars at a time and return their scans in order.

    Args:
        paths: the tars.
        progress: draw a progress bar once the scan takes longer than 2 s.

    Raises:
        DataError: see `scan_shard`.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            found: Iterable[ShardScan] = pool.map(scan_shard, paths)
            return list(tqdm(found, "indexing", len(paths), unit="shard", delay=2, disable=not progress))
        finally:
            pool.shutdown(cancel_futures=True)


def check_unique(keys: Sequence[bytes], shard_of: Callable[[int], Path]) -> None:
    """Raise a DataError where two samples have the same key.

    Args:
        keys: of all samples.
        shard_of: gives the shard of a sample's number.
    """
    hashes = np.fromiter((hash(key) for key in keys), dtype=np.int64, count=len(keys))
    values, counts = np.unique(hashes, return_counts=True)
    first: dict[bytes, int] = {}
    for number in np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist():
        other = first.setdefault(keys[number], number)
        if other != number:
            raise DataError(
                f"Sample {_text(keys[number])} is in {shard_of(other)} and again in {shard_of(number)}: "
                "remove the shard that was copied twice, or write the shards again with keys of their own."
            )


def _is_junk(name: bytes) -> bool:
    base = name.rpartition(b"/")[2]
    return base.startswith(b".") or (base.startswith(b"__") and base.endswith(b"__"))


def _split_name(path: Path, member: Member) -> tuple[bytes, str]:
    folder, slash, base = member.name.rpartition(b"/")
    stem, dot, extension = base.partition(b".")
    if not dot:
        what = f"{_text(member.name)} has no extension, so it belongs to no sample"
        defect(path, member.header, what, "write the shard again without it")
    return folder + slash + stem, _text(extension).lower()


def _image(path: Path, key: bytes, begin: int, members: dict[str, Member]) -> tuple[int, int, int]:
    images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        what = f"sample {_text(key)} has {' and '.join(images) or 'no image, only ' + ', '.join(members)}"
        defect(path, begin, what, f"write the shard with one image a sample ({', '.join(IMAGE_EXTENSIONS)})")
    image = members[images[0]]
    if not image.length:
        defect(path, image.header, f"the image of sample {_text(key)} is empty", "write the shard again")
    return image.offset, image.length, IMAGE_EXTENSIONS.index(images[0])


def _label(tar: PositionalTar, key: bytes, members: dict[str, Member]) -> int:
    member = members.get(LABEL_EXTENSION)
    if member is None:
        return NO_LABEL
    body = tar.read(member.offset, min(member.length, LONGEST_LABEL)).strip()
    # Eighteen digits fit an int64.
    if member.length > LONGEST_LABEL or not body.isdigit() or len(body) > 18:
        what = f"the cls of sample {_text(key)} is {_text(body)!r}, not a class number"
        defect(tar.path, member.offset, what, "write class numbers of at least 0 as digits")
    return int(body)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
