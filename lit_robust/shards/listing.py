"""Which tars make up a split: by the files in a folder, or behind a URL, and what the info files next to them say."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from lit_robust.core.errors import DataError, UserError, printable
from lit_robust.core.files import read_regular
from lit_robust.shards.fetch import FetchError
from lit_robust.shards.info import TIMM_NAMES, Info, SplitClaim, is_known, may_be_info, parse_info
from lit_robust.shards.remote import Remote, refused

UNFINISHED = ".unfinished"  # A hidden file of this ending, and of the tars' names before it, tells of a writer.
ALIASES = {"val": "validation", "validation": "val"}
UNPACKING = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd --rm"}
COMPRESSED = re.compile(rf"([^.].*)\.t(?:ar\.)?(?:{'|'.join(UNPACKING)})")
SPLIT_WORDS = ("train", "validation", "val", "test")
LARGEST_LIST = 1 << 26  # bytes; a list of 100,000 shards has about a tenth


@dataclass(frozen=True, kw_only=True)
class Listing(SplitClaim):
    """The tars of one split, in order, and what info files say of them.

    Attributes:
        folder: where they lie.
        split: name of the split as the info file spells it; None for all tars of a folder.
        info: names of the info files that were used.
        problems: sentences about missing shards, and about info files that contradict each other or the folder.
    """

    folder: Path
    split: str | None
    info: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to call its shards after "The shards"."""
        return f"in {self.folder}" if self.split is None else f"of {self.split!r} in {self.folder}"


class ShardFolder:
    """The tars and info files of one folder.

    Attributes:
        tars: names of the tars, in order.
        unfinished: first parts of the names of tars whose split is, or was, being written.
        infos: what the info files say.
        claims: splits that an info file of timm's form has.
        compressed: names of compressed tars that do not lie here unpacked, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = sorted((file.name for file in folder.iterdir() if not file.is_dir()), key=numbered)
        self.tars = [name for name in names if name.endswith(".tar") and not name.startswith(".")]
        packed = {name: match[1] for name in names if (match := COMPRESSED.fullmatch(name))}
        self.compressed = [name for name, stem in packed.items() if f"{stem}.tar" not in self.tars]
        self.unfinished = [
            name[1 : -len(UNFINISHED)] for name in names if name.startswith(".") and name.endswith(UNFINISHED)
        ]
        found = (_read(folder / name) for name in names if may_be_info(name))
        self.infos = [info for info in found if info is not None]
        self.claims: dict[str, SplitClaim] = {}
        self.timm_name = TIMM_NAMES[0]
        for name in reversed(TIMM_NAMES):
            for info in self.infos:
                if info.name == name and info.splits:
                    self.claims, self.timm_name = dict(info.splits), name

    def unclaimed(self) -> list[str]:
        """Return the tars of no split of timm's form, those that are only listed included."""
        claimed = {file for claim in self.claims.values() for file in claim.files}
        listed = {self._resolve(file) for info in self.infos for file in info.lengths}
        return sorted((listed | set(self.tars)) - claimed, key=numbered)

    def find(self, split: str | None) -> Listing | None:
        """Return a split, or None where there are no tars of it; None for the name takes all tars of no claim."""
        candidates = [split, ALIASES[split]] if split in ALIASES else [split]
        for name in candidates:
            if name is not None and name in self.claims:
                return self.from_claim(name, self.claims[name])
        rest = self.unclaimed()
        for name in candidates:
            lists = [info for info in self.infos if info.title and name and names_split(info.title, name)]
            if len(lists) == 1:
                return self.from_names(name, [self._resolve(file) for file in lists[0].lengths])
            if files := [file for file in rest if names_split(file, name)]:
                return self.from_names(name, files)
        for name in candidates:
            if name is not None and (self.folder / name).is_dir():
                below = ShardFolder(self.folder / name)
                listing = below.find(name) or below.find(None)
                if listing is not None:
                    return replace(
                        listing,
                        folder=self.folder,
                        split=name,
                        files=tuple(f"{name}/{file}" for file in listing.files),
                        info=tuple(f"{name}/{file}" for file in listing.info),
                    )
        return None

    def from_claim(self, split: str, claim: SplitClaim) -> Listing:
        """Return a split as an info file of timm's form has it."""
        info = (self.timm_name,)
        problems = tuple(map(printable, self._missing(claim.files, info, split)))
        return Listing(**vars(claim), folder=self.folder, split=split, info=info, problems=problems)

    def from_names(self, split: str | None, files: Sequence[str]) -> Listing:
        """Return a split of the given tars, with what the info files say of them."""
        said: dict[str, dict[str, int]] = {}
        for info in self.infos:
            for listed, length in info.lengths.items():
                said.setdefault(self._resolve(listed), {})[info.name] = length
        used = tuple(dict.fromkeys(name for file in files for name in said.get(file, {})))
        problems = self._missing(files, used, split)
        problems += [
            f"The shards {stem}-*.tar in {self.folder} are not all written: run the command that writes them again, or "
            f"remove them and .{stem}{UNFINISHED}."
            for stem in self.unfinished
            if any(file.startswith(f"{stem}-") for file in files)
        ]
        problems += [self.unpacking(name) for name in self.compressed if names_split(name, split)]
        for file in files:
            if len(set(said.get(file, {}).values())) > 1:
                counts = " and ".join(f"{length} ({name})" for name, length in said[file].items())
                problems.append(f"Info files in {self.folder} say that {file} holds {counts} samples: correct one.")
        lacking = [file for file in files if file not in said]
        lengths = None if lacking else tuple(next(iter(said[file].values())) for file in files)
        if used and lacking:
            problems.append(
                f"{self.folder / lacking[0]} is not listed in {_some(used)}: remove it or correct the list."
            )
        counts_used: tuple[str, ...] = ()
        count = None
        if set(files) == set(self.tars):
            counts_used, count = self._totals(files, problems)
        if lengths is not None and count is not None and sum(lengths) != count:
            problems.append(
                f"{_some(used)} in {self.folder} lists {sum(lengths)} samples, but __len__ says {count}: correct one."
            )
        if not used and "nshards.txt" not in counts_used:
            problems += gaps(self.folder, files)
        claim = SplitClaim(tuple(files), lengths, count=count)
        names = (*used, *counts_used)
        printed = tuple(map(printable, problems))
        return Listing(**vars(claim), folder=self.folder, split=split, info=names, problems=printed)

    def unpacking(self, name: str) -> str:
        """Return the sentence about a compressed tar."""
        command = next(command for ending, command in UNPACKING.items() if name.endswith(ending))
        return f"{self.folder / name} is compressed, and not read: unpack it with `{command} {shlex.quote(name)}`."

    def _totals(self, files: Sequence[str], problems: list[str]) -> tuple[tuple[str, ...], int | None]:
        shards = next((info for info in self.infos if info.shards is not None), None)
        total = next((info for info in self.infos if info.count is not None), None)
        if shards is not None and shards.shards != len(files):
            problems += gaps(self.folder, files)
            problems.append(
                f"{self.folder} holds {len(files)} shards, but {shards.name} says {shards.shards}: copy or download "
                "the missing ones, or correct it."
            )
        return tuple(i.name for i in (shards, total) if i is not None), None if total is None else total.count

    def _missing(self, files: Sequence[str], used: Sequence[str], split: str | None) -> list[str]:
        missing = [file for file in files if not (self.folder / file).is_file()]
        if not missing:
            return []
        if not used:
            return [
                f"{self.folder / missing[0]} is not a file, or a link that leads nowhere: fetch what it stands for, or "
                "remove it."
            ]
        listed = "lists" if split is None else f"lists for {split!r}"
        return [
            f"{len(missing)} of the {len(files)} shards that {self.folder / _some(used)} {listed} are missing, the "
            f"first is {missing[0]}: copy or download them."
        ]

    def _resolve(self, file: str) -> str:
        # Shard lists are often written from some folder above.
        name = PurePosixPath(file).name
        return name if name in self.tars and not (self.folder / file).is_file() else file


def gaps(folder: Path, files: Sequence[str]) -> list[str]:
    """Return a sentence for each hole among numbered tars; without an info file nothing else tells of a lost shard."""
    series: dict[tuple[str, str], list[int]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d+)(\D*)", file):
            series.setdefault((match[1], match[3]), []).append(int(match[2]))
    return [
        f"Shard number {low + 1 if high == low + 2 else f'{low + 1} to {high - 1}'} is missing in {folder} between "
        f"{before}{min(numbers)}{after} and {before}{max(numbers)}{after}: copy or download it, or list the shards in "
        f"{TIMM_NAMES[0]}."
        for (before, after), numbers in series.items()
        for low, high in pairwise(sorted(numbers))
        if high > low + 1
    ]


def _read(path: Path) -> Info | None:
    try:
        # Other software's JSON, such as a table of annotations, may be of any size and coding.
        if not is_known(path.name) and path.stat().st_size > LARGEST_LIST:
            return None
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): correct or remove it.") from error
    return parse_info(str(path), content.decode("utf-8", "surrogateescape"))


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more info files"


def numbered(file: str) -> tuple[list[str | int], str]:
    """Order by the numbers in a name, as not everyone writes them with leading zeros."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", file))], file


def names_split(file: str, split: str | None) -> bool:
    """Tell whether a file belongs to a split by its name, in which the last word that is a split's decides."""
    if split is None:
        return True
    words = {word: place for word in {*SPLIT_WORDS, split.lower()} if (place := _last_place(word, file)) >= 0}
    # Of two words that end at one place, such as `val` and `mini-val`, the longer one is the name.
    return split.lower() in words and max(words, key=lambda word: (words[word], len(word))) == split.lower()


def _last_place(word: str, file: str) -> int:
    """Return where a word ends last in a file's name, or -1."""
    # As a word: "val" is in "imagenet-val-0001.tar", but not in "retrieval-train-0001.tar".
    ends = [match.end() for match in re.finditer(rf"(?<![a-z]){re.escape(word)}(?![a-z])", file, re.IGNORECASE)]
    return ends[-1] if ends else -1


REMOTE_NAMES = (*TIMM_NAMES, "sizes.json")


def list_split(folder: Path, split: str | None) -> Listing:
    """Find the tars of a split.

    Info files decide, see `parse_info`: timm's form by the name of the split, a shard list of wids by its own name.
    Without them, or for a split they do not have, the tars whose names contain the split as a word make up the split,
    in the order of their numbers; or else the tars in the subfolder of the split's name. Counts of samples and of tars
    come from whichever info file has them. ``val`` and ``validation`` mean the same.

    Args:
        folder: where the tars lie.
        split: name of the split; None takes all tars, or the only split of the info file.

    Raises:
        UserError: there is no such folder or split.
        DataError: an info file is malformed, one of the tars is missing, or info files contradict each other.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: check the path, or make shards with `lit-robust data shard`.")
    contents = ShardFolder(folder)
    if split is None and len(contents.claims) == 1:
        split = next(iter(contents.claims))
    if split is None and contents.claims:
        names = ", ".join(contents.claims)
        raise UserError(f"{folder / contents.timm_name} has the splits {names}: name one of them.")
    listing = contents.find(split)
    packed = [name for name in contents.compressed if names_split(name, split)]
    if listing is None and packed:
        raise DataError(contents.unpacking(packed[0]))
    if listing is None and split is None:
        raise UserError(f"There are no shards in {folder}: check the path, or make some with `lit-robust data shard`.")
    if listing is None:
        if not contents.claims and not contents.tars and any(one.is_dir() for one in folder.iterdir()):
            raise UserError(
                f"{folder} holds no shards: pack the images there with `lit-robust data shard {folder} OUTPUT --split "
                f"{split}`, and name the root of OUTPUT."
            )
        there = ", ".join(contents.claims) or ", ".join(contents.tars[:3]) or "no tars"
        raise UserError(f"There is no split {split!r} in {folder}, which holds {there}: check folder and split.")
    if listing.problems:
        raise DataError(listing.problems[0])
    return listing


def list_all(folder: Path) -> list[Listing]:
    """Find all splits of a folder, each tar in one of them, with their problems; subfolders are not searched.

    Raises:
        DataError: an info file is malformed.
    """
    contents = ShardFolder(folder)
    listings = [contents.from_claim(name, claim) for name, claim in contents.claims.items()]
    rest = contents.unclaimed()
    for word in SPLIT_WORDS:
        if files := [file for file in rest if names_split(file, word)]:
            listings.append(contents.from_names(word, files))
            rest = [file for file in rest if file not in files]
    return [*listings, *([contents.from_names(None, rest)] if rest else [])]


def list_remote_split(remote: Remote, split: str) -> Listing:
    """Find the tars of a split behind a URL, where nothing but an info file can tell them and their lengths.

    ``_info.json``, ``info.json`` and ``sizes.json`` are asked for in the folder, then in its subfolder of the split's
    name.

    Raises:
        UserError: there is no info file that lists this split with its counts, access to it is refused, or nobody
            answers.
        DataError: an info file is malformed.
    """
    names = [split, ALIASES[split]] if split in ALIASES else [split]
    failures: list[tuple[str, FetchError]] = []
    for file in (below + name for below in ("", *(f"{name}/" for name in names)) for name in REMOTE_NAMES):
        try:
            text = remote.text(file)
        except FetchError as error:
            if error.kind in ("unreachable", "slow"):
                raise UserError(
                    f"{remote.shown(file)} cannot be reached: check the address and the connection ({error})."
                ) from error
            failures.append((file, error))
            continue
        info = parse_info(remote.shown(file), text)
        listing = None if info is None else _remote_listing(info, file.removesuffix(PurePosixPath(file).name), names)
        if listing is not None:
            return listing
    # Stores refuse what is not there, too, where one may not list them: so only now.
    for file, failure in failures:
        if failure.kind == "refused":
            raise refused(remote.shown(file), failure) from failure
    said = next((f" (asked for {file}: {failure})" for file, failure in failures if failure.kind == "unknown"), "")
    raise UserError(
        f"{remote} has no _info.json or sizes.json that lists the split {split!r} with the samples of each shard{said}:"
        " upload one, or copy the shards to a disk."
    )


def _remote_listing(info: Info, below: str, names: Sequence[str]) -> Listing | None:
    folder = Path(below)
    for name in names:
        claim = info.splits.get(name)
        if claim is not None and claim.lengths is not None:
            if claim.label_field is not None:
                raise UserError(
                    f"{info.where} says that labels are in the json field {claim.label_field!r}, which is read from "
                    "disks only: copy the shards to one."
                )
            files = {"files": tuple(below + file for file in claim.files)}
            return Listing(**(vars(claim) | files), folder=folder, split=name)
        listed = sorted((file for file in info.lengths if below or names_split(file, name)), key=numbered)
        if listed:
            lengths = tuple(info.lengths[file] for file in listed)
            return Listing(files=tuple(below + file for file in listed), lengths=lengths, folder=folder, split=name)
    return None
