"""Checking sets of shards from end to end, each image too where asked: everything that is wrong with them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError, printable
from lit_robust.core.files import file_sha256, open_regular
from lit_robust.core.processes import end_with_parent
from lit_robust.shards.decode import decode_rgb
from lit_robust.shards.info import may_be_info
from lit_robust.shards.labels import LabelRule, text
from lit_robust.shards.listing import COMPRESSED, Listing, ShardFolder, list_all
from lit_robust.shards.merge import Arrays, claimed_classes, dali_files, merge_scans
from lit_robust.shards.scan import THREADS, scan_shards, skip
from lit_robust.shards.tar import Defect, read_exactly

PIECE = 256  # images a task: some seconds' work at most


class Piece(NamedTuple):
    """Some images of one shard.

    Attributes:
        folder: of the split.
        shard: the tar's path relative to it.
        offset: ``[P]`` byte where each image begins.
        length: ``[P]`` bytes of each.
        keys: all keys together.
        key_starts: ``[P + 1]``, where in ``keys`` each begins, counted from another place.
    """

    folder: Path
    shard: str
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    keys: bytes
    key_starts: NDArray[np.int64]

    def images(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield byte, length and key of each image."""
        starts = (self.key_starts - self.key_starts[0]).tolist()
        for place, (offset, length) in enumerate(zip(self.offset.tolist(), self.length.tolist(), strict=True)):
            yield offset, length, self.keys[starts[place] : starts[place + 1]]


def broken_images(folder: Path, files: Sequence[str], arrays: Arrays, workers: int, progress: bool) -> list[Defect]:
    """Decode all images and return those that are broken.

    Args:
        folder: of the split.
        files: its tars, relative to ``folder``.
        arrays: of `merge_scans`.
        workers: processes, at least 1.
        progress: draw a progress bar for what takes over 2 s.

    Raises:
        UserError: a process was killed.
    """
    found: list[Defect] = []
    bar = tqdm(desc="decoding", total=len(arrays["offset"]), unit="image", delay=2, disable=not progress)
    with bar, ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        try:
            pieces = list(_pieces(folder, files, arrays))
            for piece, broken in zip(pieces, pool.map(decode_piece, pieces), strict=True):
                found += broken
                bar.update(len(piece.offset))
        except BrokenProcessPool as error:
            raise UserError(
                "A process that decodes images was killed, probably for want of memory: give fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def decode_piece(piece: Piece) -> list[Defect]:
    """Decode some images of one shard and return the broken ones; runs in a process of its own."""
    path = piece.folder / piece.shard
    found = []
    try:
        descriptor = open_regular(path)
    except OSError as error:
        return [Defect(piece.shard, int(piece.offset[0]), f"it cannot be opened again ({error.strerror})")]
    try:
        for offset, length, key in piece.images():
            try:
                data = read_exactly(descriptor, path, offset, length, offset + length)
                decode_rgb(data, text(key))
            except DataError as error:
                # The sentence without its advice, as others follow it.
                found.append(Defect(piece.shard, offset, str(error).rpartition(": ")[0]))
    finally:
        os.close(descriptor)
    return found


def _pieces(folder: Path, files: Sequence[str], arrays: Arrays) -> Iterator[Piece]:
    starts = np.concatenate([np.zeros(1, np.int64), arrays["key_ends"]])
    bounds = np.searchsorted(arrays["shard"], np.arange(len(files) + 1))
    for place, file in enumerate(files):
        for begin in range(bounds[place], bounds[place + 1], PIECE):
            end = min(begin + PIECE, bounds[place + 1])
            yield Piece(
                folder,
                file,
                arrays["offset"][begin:end],
                arrays["length"][begin:end],
                arrays["keys"][starts[begin] : starts[end]].tobytes(),
                starts[begin : end + 1],
            )


NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class SplitReport:
    """What a split holds, and all that is wrong with it.

    Attributes:
        folder: where its shards lie.
        split: its name, or None for all tars of the folder.
        shards: how many tars there are.
        size: bytes of the tars.
        samples: how many whole samples they hold.
        unlabelled: how many of these have no class.
        images_per_class: ``[C]``, for the classes that occur.
        info: names of the info files that were used.
        agrees: whether they promise what the shards hold.
        missing: sentences about missing shards and about info files that contradict each other.
        defects: what is wrong inside the shards, in their order; shards are relative to ``folder``.
        unseen: what could be wrong without being seen, half a sentence; empty where digests were compared.
    """

    folder: Path
    split: str | None
    shards: int = 0
    size: int = 0
    samples: int = 0
    unlabelled: int = 0
    images_per_class: NDArray[np.int64] = field(default_factory=lambda: NOTHING)
    info: tuple[str, ...] = ()
    agrees: bool = True
    missing: tuple[str, ...] = ()
    defects: tuple[Defect, ...] = ()
    unseen: str = ""

    @property
    def count(self) -> int:
        """How many things are wrong."""
        return len(self.missing) + len(self.defects)


def verify_shards(
    path: Path, label: LabelRule, decode: bool = False, workers: int = 2, quick: bool = False, progress: bool = True
) -> list[SplitReport]:
    """Read every tar of a set, or of all sets below a folder, and compare them with the info files.

    Args:
        path: folder of a set, or above several; links to folders are followed.
        label: where classes come from.
        decode: decode every image too.
        workers: processes that decode.
        quick: read headers and labels alone; without it, the bytes of every tar whose digest the info file has.
        progress: draw progress bars for what takes over 2 s.

    Returns:
        One report a split.

    Raises:
        UserError: there is no such folder, or there are no shards in it.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder {path}: check the path.")
    found = list(_splits(path))
    if not found:
        raise UserError(f"There are no shards in {path}: give a folder with tars in it or below it.")
    return [
        _verify_split(one, label, decode, workers, quick, progress) if isinstance(one, Listing) else one
        for one in tqdm(found, "verifying", unit="split", delay=2, disable=not progress)
    ]


def _splits(root: Path) -> Iterator[Listing | SplitReport]:
    """Yield the splits of every folder, or a report where an info file cannot be read."""
    seen: set[str] = set()
    claimed: set[Path] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        # Links may lead round in a circle.
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(place)
        if not any(name.endswith(".tar") or may_be_info(name) for name in files):
            if any(COMPRESSED.fullmatch(name) for name in files):
                contents = ShardFolder(folder)
                packed = tuple(map(contents.unpacking, contents.compressed))
                yield SplitReport(folder, None, agrees=False, missing=packed)
            continue
        try:
            listings = list_all(folder)
        except DataError as error:
            yield SplitReport(folder, None, agrees=False, missing=(str(error),))
            continue
        # What an info file further up lists is not a set of its own.
        for one in listings:
            if not claimed.issuperset(folder / file for file in one.files):
                claimed |= {folder / file for file in one.files}
                yield one


def _verify_split(
    listing: Listing, label: LabelRule, decode: bool, workers: int, quick: bool, progress: bool
) -> SplitReport:
    there = _without_missing(listing)
    rule = label.resolve(listing.label_field)
    scans = scan_shards([listing.folder / file for file in there.files], rule, skip, progress)
    merged = merge_scans(there, scans, skip, claimed_classes(there, rule))
    broken = broken_images(listing.folder, there.files, merged.arrays, workers, progress) if decode else []
    defects = [*merged.defects, *_unlabelled(there, merged.arrays), *broken]
    if not quick:
        named = {defect.shard for defect in defects}
        defects += [defect for defect in _altered(there, progress) if defect.shard not in named]
    order = {file: place for place, file in enumerate(there.files)}
    labels = merged.arrays["label"]
    return SplitReport(
        folder=listing.folder,
        split=listing.split,
        shards=len(there.files),
        size=sum(scan.size for scan in scans),
        samples=len(labels),
        unlabelled=int((labels < 0).sum()),
        images_per_class=np.unique(labels[labels >= 0], return_counts=True)[1],
        info=(*listing.info, *(name for name in dali_files(listing.folder, there.files) if name is not None)),
        agrees=merged.agrees and not listing.problems,
        missing=listing.problems,
        defects=tuple(sorted(defects, key=lambda one: (order.get(one.shard, -1), one.offset))),
        unseen=_unseen(there, quick),
    )


def _altered(listing: Listing, progress: bool) -> list[Defect]:
    """Return a defect for each shard whose bytes are not those that the info file has the digest of."""
    if listing.digests is None:
        return []
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(file_sha256, [listing.folder / file for file in listing.files])
        bar = tqdm(found, "comparing digests", len(listing.files), unit="shard", delay=2, disable=not progress)
        return [
            Defect(file, 0, f"its bytes are not those whose sha256 {listing.info[0]} has")
            for file, digest, said in zip(listing.files, bar, listing.digests, strict=True)
            if digest != said
        ]


def _unseen(listing: Listing, quick: bool) -> str:
    if listing.digests is not None:
        return "digests were not compared, as --quick is given" if quick else ""
    if listing.lengths is not None:
        return "no digests, so damage within an image or a class number may not be seen"
    return (
        "neither counts nor digests, so damage within an image or a class number may not be seen, nor small samples "
        "that are lost at a shard's end, up to 10 KiB"
    )


def _without_missing(listing: Listing) -> Listing:
    places = [place for place, file in enumerate(listing.files) if (listing.folder / file).is_file()]
    return replace(
        listing,
        files=tuple(listing.files[place] for place in places),
        lengths=None if listing.lengths is None else tuple(listing.lengths[place] for place in places),
        digests=None if listing.digests is None else tuple(listing.digests[place] for place in places),
        count=listing.count if len(places) == len(listing.files) else None,
    )


def _unlabelled(listing: Listing, arrays: Arrays) -> list[Defect]:
    """Return one defect for each shard with samples that lack a class where others have one."""
    labels, shard, ends = arrays["label"], arrays["shard"], arrays["key_ends"]
    numbers = np.flatnonzero(labels < 0)
    if len(numbers) == len(labels):
        return []
    found = []
    for place, first, count in zip(*np.unique(shard[numbers], return_index=True, return_counts=True), strict=True):
        number = int(numbers[first])
        key = arrays["keys"][ends[number - 1] if number else 0 : ends[number]].tobytes()
        sentence = f"samples without a class: {count}, the first is {text(key)}"
        found.append(Defect(listing.files[place], int(arrays["offset"][number]), sentence))
    return found


def report_text(reports: Sequence[SplitReport]) -> str:
    """Return a table with a line a split, and below it a line for everything that is wrong."""
    head = (
        "set",
        "split",
        "shards",
        "samples",
        "size",
        "classes",
        "images a class",
        "no class",
        "info file",
        "defects",
    )
    rows = [head, *(tuple(map(printable, _row(report))) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    left = (0, 1, 8)
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for report in reports:
        found = [f"{report.folder / one.shard} at byte {one.offset}: {one.what}" for one in report.defects]
        lines += map(printable, [*report.missing, *found])
    for unseen, count in Counter(report.unseen for report in reports if report.unseen).items():
        lines.append(f"{count} of {len(reports)} splits: {unseen}")
    return "\n".join([*lines, f"defects: {sum(report.count for report in reports)}"])


def _row(report: SplitReport) -> tuple[str, ...]:
    counts = report.images_per_class
    names = f"{report.info[0]} ..." if len(report.info) > 1 else "".join(report.info)
    return (
        str(report.folder),
        report.split or "(all)",
        str(report.shards),
        str(report.samples),
        _size(report.size),
        str(len(counts)),
        f"{counts.min()} to {counts.max()}" if len(counts) else "-",
        str(report.unlabelled),
        f"{names} {'agrees' if report.agrees else 'differs'}" if names else "none",
        str(report.count),
    )


def _size(count: int) -> str:
    """Return a number of bytes in the unit that gives it at most four digits before the point."""
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 10_000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}"
