"""One strict pass over the headers of a tar: which samples it holds, and where."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lit_robust.core.files import open_regular
from lit_robust.shards.labels import CLS, LABEL_EXTENSION, LONGEST_LABEL, LabelRule, find_label, text
from lit_robust.shards.tar import Defect, DefectError, Member, PositionalTar, defect, defect_error, found_defect

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# Pictures that a shard may hold next to a sample's image, and never as the image itself.
OTHER_PICTURES = {"avif", "bmp", "gif", "heic", "jfif", "jp2", "jpe", "pbm", "pgm", "pnm", "ppm", "tif", "tiff"}
REPACK = f"write the shard with images as {', '.join(IMAGE_EXTENSIONS)}, such as PNG, which loses nothing"
THREADS = 8  # They wait for the file system, not for the processor.


@dataclass(frozen=True)
class ShardScan:
    """The samples of one tar, in its order.

    Attributes:
        size: bytes of the tar.
        state: what tells whether the file is still the same, taken while it was open, see `file_state`.
        headers: sha256, in hexadecimal, over all headers and `cls` members, whatever rule finds the labels.
        keys: ``N`` names.
        offset: ``[N]`` int64, byte where the image begins.
        length: ``[N]`` int64, bytes of the image.
        extension: ``[N]`` uint8, place of the image's extension in `IMAGE_EXTENSIONS`.
        label: ``[N]`` int64, class, or -1 where the sample has none.
        defects: what was passed over; empty after a strict scan.
    """

    size: int
    state: tuple[int, ...]
    headers: str
    keys: Sequence[bytes]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    extension: NDArray[np.uint8]
    label: NDArray[np.int64]
    defects: tuple[Defect, ...] = ()


def refuse(error: DefectError) -> None:
    """Raise the first defect: the handler of a strict scan."""
    raise error


def skip(error: DefectError) -> None:
    """Go on without the sample, or the rest of the shard: the handler of a scan that only lists defects."""


Handler = Callable[[DefectError], None]


def scan_shard(path: Path, rule: LabelRule = CLS, on_defect: Handler = refuse) -> ShardScan:
    """Read the headers and labels of one tar; see `scan_open`.

    Raises:
        DefectError: it cannot be opened or is defective, where ``on_defect`` is `refuse`.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        sentence = f"The shard {path} cannot be opened ({error.strerror}): check the path and its mode."
        unreadable = Defect(str(path), 0, f"it cannot be opened ({error.strerror})")
        on_defect(found_defect(sentence, unreadable))
        return _shard_scan((0,), "", {}, (unreadable,))
    try:
        return scan_open(path, descriptor, rule, on_defect)
    finally:
        os.close(descriptor)


def scan_open(where: Path | str, descriptor: int, rule: LabelRule = CLS, on_defect: Handler = refuse) -> ShardScan:
    """Read the headers and labels of a tar that is open.

    A sample is what lies together under one key, the path up to the first dot of the base name, as in WebDataset. It
    holds one image and may hold a ``cls`` and other members. Hidden files (AppleDouble's ``._x`` among them) and
    ``__meta__`` members belong to no sample.

    Args:
        where: the tar's path or URL, for messages.
        descriptor: of a regular file.
        rule: how labels are found; a resolved one.
        on_defect: called with every defect; `refuse` or `skip`. After one of a sample, the sample is left out; after
            one of the tar, all that follows and the sample before it, whose end nobody knows.

    Raises:
        DefectError: the tar is not well formed, the members of a sample do not lie together, a sample has no image or
            two, a member occurs twice, or a label is not a class number; where ``on_defect`` is `refuse`.
    """
    status = os.fstat(descriptor)
    tar = PositionalTar(where, descriptor, status.st_size)
    samples = _Samples(tar, rule, on_defect)
    samples.gather()
    return _shard_scan(file_state(status), tar.headers.hexdigest(), samples.rows, tuple(samples.defects))


def file_state(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return what tells whether a file is still the same: bytes, nanoseconds of its content's and own change, inode.

    The second time nobody can set, and two files have two inodes: they tell of a file that was written again, or
    replaced, with its old size and time. Alone they prove nothing: a new mode changes the one, and some network file
    systems number their files anew.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def scan_shards(paths: Sequence[Path], rule: LabelRule, on_defect: Handler, progress: bool) -> list[ShardScan]:
    """Scan several tars at a time and return their scans in order.

    Args:
        paths: the tars.
        rule: how labels are found; a resolved one.
        on_defect: `refuse` or `skip`.
        progress: draw a progress bar once the scan takes longer than 2 s.

    Raises:
        DefectError: see `scan_open`.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            found: Iterable[ShardScan] = pool.map(partial(scan_shard, rule=rule, on_defect=on_defect), paths)
            return list(tqdm(found, "indexing", len(paths), unit="shard", delay=2, disable=not progress))
        finally:
            pool.shutdown(cancel_futures=True)


class UnreadFormatError(DefectError):
    """A DefectError about a sample whose one image is in a format that is not read."""


class _Samples:
    """The samples of one tar, as they come.

    Attributes:
        rows: key to place, length and extension of the image, and label.
        defects: that the handler let pass.
    """

    def __init__(self, tar: PositionalTar, rule: LabelRule, on_defect: Handler) -> None:
        self.tar = tar
        self.rule = rule
        self.on_defect = on_defect
        self.rows: dict[bytes, tuple[int, int, int, int]] = {}
        self.defects: list[Defect] = []
        self._seen: dict[bytes, frozenset[str]] = {}
        self._broken = False

    def gather(self) -> None:
        unread: list[Defect] = []
        groups = 0
        for key, group in groupby(self._named(), key=itemgetter(0)):
            members = [(extension, member) for _, extension, member in group]
            begin = members[0][1].header
            # The end of the last group is the end of the readable part: only now is it known not to be a true end.
            if self._broken:
                what = f"sample {text(key)} may lack members behind this place and is left out"
                self._note(defect_error(self.tar.path, begin, what))
                continue
            groups += 1
            try:
                self.rows[key] = self._row(key, begin, members)
            except UnreadFormatError as error:
                unread.append(error.found)
            except DefectError as error:
                self._note(error)
        # Where one is, often all are: only the end tells how many.
        for found in unread:
            what = f"{found.what}; so it is with {len(unread)} of the {groups} samples of this shard"
            self._note(defect_error(self.tar.path, found.offset, what, REPACK))

    def _named(self) -> Iterator[tuple[bytes, str, Member]]:
        members = self.tar.members()
        while True:
            try:
                member = next(members, None)
            except DefectError as error:
                self._note(error)
                self._broken = True
                return
            if member is None:
                return
            folder, slash, base = member.name.rpartition(b"/")
            stem, dot, extension = base.partition(b".")
            if not stem or not dot or (base.startswith(b"__") and base.endswith(b"__")):
                self._check_stray(member, base, dot)
            else:
                yield folder + slash + stem, text(extension).lower(), member

    def _check_stray(self, member: Member, base: bytes, dot: bytes) -> None:
        hidden = base.startswith(b".") or (base.startswith(b"__") and base.endswith(b"__"))
        if member.problem is not None:
            self._note(member.problem)
        elif not hidden:
            what = f"{text(member.name)} has no extension, so it belongs to no sample"
            self._note(defect_error(self.tar.path, member.header, what, "write the shard again without it"))

    def _row(self, key: bytes, begin: int, members: Sequence[tuple[str, Member]]) -> tuple[int, int, int, int]:
        self._check_seen(key, begin, frozenset(extension for extension, _ in members))
        by_extension: dict[str, Member] = {}
        for extension, member in members:
            if member.problem is not None:
                raise member.problem
            if extension in by_extension:
                what = f"sample {text(key)} has a second {extension}"
                defect(self.tar.path, member.header, what, "write the shard again")
            by_extension[extension] = member
        if label := by_extension.get(LABEL_EXTENSION):
            self.tar.headers.update(self.tar.read(label.offset, min(label.length, LONGEST_LABEL)))
        return (*self._image(key, begin, by_extension), find_label(self.tar, key, by_extension, self.rule))

    def _check_seen(self, key: bytes, begin: int, extensions: frozenset[str]) -> None:
        before = self._seen.get(key)
        self._seen[key] = extensions if before is None else before | extensions
        if before is None:
            return
        if before & extensions:
            what = f"sample {text(key)} occurs a second time"
            defect(self.tar.path, begin, what, "write the shard again, each sample once")
        # Then what was taken for the whole sample is but its first part.
        self.rows.pop(key, None)
        what = f"the members of sample {text(key)} do not lie together"
        defect(self.tar.path, begin, what, "write the shard again, each sample in one piece")

    def _image(self, key: bytes, begin: int, members: dict[str, Member]) -> tuple[int, int, int]:
        images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
        if len(images) != 1:
            what = f"sample {text(key)} has {' and '.join(images) or 'no image, only ' + ', '.join(members)}"
            fix = f"write the shard with one image a sample ({', '.join(IMAGE_EXTENSIONS)})"
            dotted = [name for name in members if name.rpartition(".")[2] in IMAGE_EXTENSIONS]
            if not images and dotted:
                name = text(members[dotted[0]].name)
                folder, slash, base = name.rpartition("/")
                stem, _, ending = base.rpartition(".")
                what += ", as a sample's key ends at the first dot of a file's name"
                fix = (
                    "write the shard with file names whose one dot is that before the ending, such as "
                    f"{folder}{slash}{stem.replace('.', '_')}.{ending} for {name}, and the sample's other members alike"
                )
            elif not images and (other := OTHER_PICTURES.intersection(members)):
                error = UnreadFormatError()
                error.found = Defect(str(self.tar.path), begin, f"the image of sample {text(key)} is {min(other)}")
                raise error
            defect(self.tar.path, begin, what, fix)
        self._check_dotted(key, members)
        image = members[images[0]]
        if not image.length:
            what = f"the image of sample {text(key)} is empty"
            defect(self.tar.path, image.header, what, "write the shard again")
        return image.offset, image.length, IMAGE_EXTENSIONS.index(images[0])

    def _check_dotted(self, key: bytes, members: dict[str, Member]) -> None:
        """Refuse what looks like a second sample, with a label of its own, whose name has a dot more."""
        labelled = (
            name.removesuffix(f".{LABEL_EXTENSION}") for name in members if name.endswith(f".{LABEL_EXTENSION}")
        )
        second = [f"{stem}.{image}" for stem in labelled for image in IMAGE_EXTENSIONS if f"{stem}.{image}" in members]
        if second:
            member = members[second[0]]
            what = f"{text(member.name)} would be part of sample {text(key)}, as a key ends at the first dot of a name"
            defect(self.tar.path, member.header, what, "write the shard with file names that have no other dot")

    def _note(self, error: DefectError) -> None:
        self.on_defect(error)
        self.defects.append(error.found)


def _shard_scan(
    state: tuple[int, ...], headers: str, rows: dict[bytes, tuple[int, int, int, int]], defects: tuple[Defect, ...]
) -> ShardScan:
    numbers = np.array(list(rows.values()), dtype=np.int64).reshape(-1, 4)
    return ShardScan(
        size=state[0],
        state=state,
        headers=headers,
        keys=list(rows),
        offset=numbers[:, 0],
        length=numbers[:, 1],
        extension=numbers[:, 2].astype(np.uint8),
        label=numbers[:, 3],
        defects=defects,
    )
