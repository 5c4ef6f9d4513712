"""Where every sample of a split lies: one strict scan, kept in a file that is mapped into memory.

The file: 8 bytes that name the format, 32 bytes sha256 of all that follows, 8 bytes length of the JSON, the JSON with
every array's type, place and length, then the arrays, each at a multiple of 64 bytes. Nothing in it is executed on
reading.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import atomic_path, held_alone, open_regular
from lit_robust.shards.labels import LabelRule
from lit_robust.shards.listing import Listing, list_split
from lit_robust.shards.merge import Merged, claimed_classes, dali_files, merge_scans
from lit_robust.shards.scan import IMAGE_EXTENSIONS, file_state, refuse, scan_shards, skip
from lit_robust.shards.tar import Defect

MAGIC = b"LRINDEX3"
DIGEST = 32
ALIGNMENT = 64

Arrays = Mapping[str, NDArray[Any]]


def cache_paths(folder: Path, split: str | None, rule: str = "") -> list[Path]:
    """Return where the index of a split may lie: next to the shards, else in the user's cache folder.

    The cache folder is ``$LIT_ROBUST_CACHE``, or ``~/.cache/lit_robust``.

    Args:
        folder: of the shards.
        split: name of the split; None for all tars of the folder.
        rule: what tells a label rule from the usual one; each has an index of its own.
    """
    name = ("all" if split is None else f"split-{quote(split, safe='')}") + (f"-{rule}" if rule else "")
    place = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    # Unlike pathlib's, this leaves the path as it is where nobody knows the home folder.
    user = Path(os.path.expanduser(os.environ.get("LIT_ROBUST_CACHE") or "~/.cache/lit_robust"))  # noqa: PTH111
    return [folder / ".lit_robust" / f"{name}.index", user / f"{folder.resolve().name}-{place}-{name}.index"]


def save_arrays(path: Path, meta: Mapping[str, Any], arrays: Arrays) -> None:
    """Write one-dimensional arrays and plain values, all or nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    entries: dict[str, dict[str, Any]] = {}
    place = 0
    for name, array in arrays.items():
        entries[name] = {"dtype": array.dtype.newbyteorder("<").str, "place": place, "count": len(array)}
        place = _aligned(place + array.nbytes)
    header = json.dumps({"meta": meta, "arrays": entries}).encode()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + bytes(DIGEST) + len(header).to_bytes(8, "little") + header)
        begin = _aligned(file.tell())
        for name, array in arrays.items():
            file.seek(begin + entries[name]["place"])
            file.write(np.ascontiguousarray(array, dtype=entries[name]["dtype"]).data)
        file.truncate(begin + place)
        file.flush()
        digest = hashlib.sha256(np.memmap(temporary, np.uint8, "r")[len(MAGIC) + DIGEST :].data).digest()
        file.seek(len(MAGIC))
        file.write(digest)


def load_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Map a file of `save_arrays` into memory; the arrays cannot be written.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is of another format or damaged.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        content = np.memmap(file, dtype=np.uint8, mode="r")
    body = len(MAGIC) + DIGEST
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"{path} is not an index of this version")
    if hashlib.sha256(content[body:].data).digest() != bytes(content[len(MAGIC) : body]):
        raise ValueError(f"{path} is damaged")
    head = body + 8
    begin = head + int.from_bytes(bytes(content[body:head]), "little")
    header = json.loads(bytes(content[head:begin]))
    begin = _aligned(begin)
    arrays = {}
    for name, entry in header["arrays"].items():
        dtype, place = np.dtype(entry["dtype"]), begin + entry["place"]
        arrays[name] = np.frombuffer(content, dtype, entry["count"], place)
    return header["meta"], arrays


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT


log = logging.getLogger(__name__)


class ShardIndex:
    """The samples of one split, in the order of the shards.

    Made by `ShardIndex.open`. Arrays are read-only. It pickles as the path of its cache file, so that worker processes
    share one copy in memory.

    Attributes:
        folder: where the shards lie.
        split: name of the split as the info file spells it, or None for all tars of a folder.
        shards: paths of the tars relative to ``folder``.
        shard_states: of each tar what tells whether it is still the same, see `lit_robust.shards.scan.file_state`.
        shard_headers: of each tar a digest over its headers.
        digest: sha256, in hexadecimal, over what the headers say: names of shards and samples, places and lengths of
            images, labels. It does not cover the pixels.
        num_classes: as the info file says, or None.
        class_names: as the info file says, or None.
        categories: category name to class numbers as the info file says, or None.
        defects: what was left out, where that was asked for; see `ShardIndex.open`.
        lost: samples that an info file promises and that were left out; None where no info file counts them.
        shard: ``[N]`` int32, the place of each sample's tar in ``shards``.
        offset: ``[N]`` int64, byte in the tar where the image begins.
        length: ``[N]`` int64, bytes of the image.
        extension: ``[N]`` uint8, place of the image's extension in `IMAGE_EXTENSIONS`; contents may differ from it.
        labels: ``[N]`` int64, class, or -1 where the sample has none.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.folder = folder
        self.split: str | None = meta["split"]
        self.shards: tuple[str, ...] = tuple(name for name, *_ in meta["stamp"]["shards"])
        self.shard_states: tuple[tuple[int, ...], ...] = tuple(tuple(state) for _, *state in meta["stamp"]["shards"])
        self.shard_headers: tuple[str, ...] = tuple(meta["headers"])
        self.digest: str = meta["digest"]
        self.num_classes: int | None = meta["num_classes"]
        self.class_names: tuple[str, ...] | None = _optional(meta["class_names"], tuple)
        self.categories: dict[str, tuple[int, ...]] | None = _optional(
            meta["categories"], lambda entries: {name: tuple(ids) for name, ids in entries.items()}
        )
        self.defects: tuple[Defect, ...] = tuple(Defect(*entry) for entry in meta["defects"])
        self.lost: int | None = meta["lost"]
        self.shard: NDArray[np.int32] = arrays["shard"]
        self.offset: NDArray[np.int64] = arrays["offset"]
        self.length: NDArray[np.int64] = arrays["length"]
        self.extension: NDArray[np.uint8] = arrays["extension"]
        self.labels: NDArray[np.int64] = arrays["label"]
        self._keys: NDArray[np.uint8] = arrays["keys"]
        self._key_ends: NDArray[np.int64] = arrays["key_ends"]
        self._meta = meta
        self._arrays = arrays
        self._cache: Path | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        split: str | None,
        progress: bool = True,
        label: LabelRule | str = "auto",
        on_error: Literal["error", "skip"] = "error",
    ) -> "ShardIndex":
        """Open the index of a split; scan the shards where no index of them as they are now is kept.

        The index is kept in ``<folder>/.lit_robust/``, or, where that cannot be written, in ``$LIT_ROBUST_CACHE`` or
        ``~/.cache/lit_robust``. A shard that changed in size or times, or a changed info file, makes it scan again. Of
        several processes that open the same split, one scans, and the others wait for what it finds.

        Args:
            folder: where the shards lie.
            split: name of the split, see `list_split`; None takes all tars, or the only split of the info file.
            progress: draw a progress bar where the scan takes longer than 2 s.
            label: where the class of a sample comes from, a rule or the name of its source; see `LabelRule`.
            on_error: what to do about a defective sample or shard: ``error`` raises; ``skip`` leaves out the sample, or
                the rest of the shard, and lists it in ``defects``.

        Raises:
            UserError: there is no such folder or split.
            DataError: a shard or the info file is defective, or their counts differ; names shard and byte.
        """
        listing = list_split(Path(folder), split)
        rule = (LabelRule(label) if isinstance(label, str) else label).resolve(listing.label_field)
        states = [file_state((listing.folder / file).stat()) for file in listing.files]
        stamp = _stamp(listing, rule, [*states, *_dali_states(listing)])
        usual = rule == LabelRule().resolve(listing.label_field)
        places = cache_paths(listing.folder, listing.split, "" if usual else rule.digest()[:16])
        found = _kept(places, listing, stamp, on_error)
        if found is None:
            with one_at_a_time(places):
                found = _kept(places, listing, stamp, on_error) or cls._scan(listing, rule, places, progress, on_error)
        if found.defects:
            count = "unknown" if found.lost is None else found.lost
            log.warning(
                "Shards %s are not whole (defects: %d, samples left out: %s); `lit-robust data verify %s` lists them.",
                *(listing.name, len(found.defects), count, listing.folder),
            )
        return found

    @classmethod
    def _scan(
        cls,
        listing: Listing,
        rule: LabelRule,
        places: Sequence[Path],
        progress: bool,
        on_error: Literal["error", "skip"],
    ) -> "ShardIndex":
        on_defect = refuse if on_error == "error" else skip
        dali = _dali_states(listing)
        scans = scan_shards([listing.folder / file for file in listing.files], rule, on_defect, progress)
        merged = merge_scans(listing, scans, on_defect, claimed_classes(listing, rule))
        if not len(merged.arrays["label"]):
            raise DataError(f"The shards {listing.name} hold no samples: write them again.")
        # Sizes and times as they were when the scan had the file open: a later change must not pass for what it saw.
        stamp = _stamp(listing, rule, [*(scan.state for scan in scans), *dali])
        meta = _meta(listing, merged, stamp, [scan.headers for scan in scans])
        for place in places:
            try:
                save_arrays(place, meta, merged.arrays)
            except UserError as error:
                log.info("The shard index is not kept in %s: %s", place.parent, error)
                continue
            return cls._reopen(place, listing.folder, merged.digest)
        log.warning("The shard index of %s cannot be kept: set LIT_ROBUST_CACHE to a folder.", listing.folder)
        return cls(listing.folder, meta, merged.arrays)

    @classmethod
    def _reopen(cls, place: Path, folder: Path, digest: str) -> "ShardIndex":
        found = _load(place, folder)
        if found is None or found.digest != digest:
            raise DataError(f"The shard index {place} changed during the run: start it again.")
        return found

    def __reduce__(self) -> tuple[Callable[..., "ShardIndex"], tuple[Any, ...]]:
        if self._cache is None:
            return ShardIndex, (self.folder, self._meta, self._arrays)
        return ShardIndex._reopen, (self._cache, self.folder, self.digest)

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, number: int) -> str:
        """Return the key of sample ``number`` (0 to N-1), the path up to the first dot of the base name.

        Bytes that are not UTF-8 are written in hexadecimal.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        begin = int(self._key_ends[number - 1]) if number else 0
        return bytes(self._keys[begin : self._key_ends[number]]).decode("utf-8", "backslashreplace")

    def shard_path(self, number: int) -> Path:
        """Return the path of the tar that holds sample ``number``."""
        return self.folder / self.shards[int(self.shard[number])]

    def image_extension(self, number: int) -> str:
        """Return the extension of the image of sample ``number``, in lower case and without a dot."""
        return IMAGE_EXTENSIONS[int(self.extension[number])]


@contextmanager
def one_at_a_time(places: Sequence[Path]) -> Iterator[None]:
    """Let one process at a time make a file, of which ``places`` are where it may lie, the best place first.

    Where none of them can be written there is no waiting.
    """
    with ExitStack() as stack:
        for place in places:
            try:
                stack.enter_context(held_alone(place.with_suffix(".lock")))
                break
            except UserError as error:
                log.info("No other process is kept from scanning: %s", error)
        yield


def _load(place: Path, folder: Path) -> ShardIndex | None:
    try:
        meta, arrays = load_arrays(place)
        index = ShardIndex(folder, meta, arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.info("The shard index %s cannot be used (%s); the shards are scanned again.", place, error)
        return None
    index._cache = place
    return index


def _kept(
    places: Sequence[Path], listing: Listing, stamp: Mapping[str, Any], on_error: Literal["error", "skip"]
) -> ShardIndex | None:
    for place in places:
        found = _load(place, listing.folder)
        if found is not None and found._meta["stamp"] == stamp and (on_error == "skip" or not found.defects):
            return found
    return None


def _dali_states(listing: Listing) -> list[tuple[int, ...]]:
    files = [file for file in dali_files(listing.folder, listing.files) if file is not None]
    return [file_state((listing.folder / file).stat()) for file in files]


def _stamp(listing: Listing, rule: LabelRule, states: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """What must be the same for a kept index to hold: the tars by name, bytes and times, the label rule, all claims."""
    shards = [[file, *state] for file, state in zip(listing.files, states, strict=False)]
    said = [listing.lengths, listing.count, listing.num_classes, listing.class_names, listing.categories]
    claims = [*said, rule.stamp(), states[len(shards) :]]
    return {"shards": shards, "info": hashlib.sha256(json.dumps(claims).encode()).hexdigest()}


def _meta(listing: Listing, merged: Merged, stamp: Mapping[str, Any], headers: Sequence[str]) -> dict[str, Any]:
    return {
        "split": listing.split,
        "stamp": stamp,
        "headers": headers,
        "digest": merged.digest,
        "num_classes": listing.num_classes,
        "class_names": listing.class_names,
        "categories": listing.categories,
        "defects": [astuple(defect) for defect in merged.defects],
        "lost": merged.lost,
    }


def _optional(value: Any, make: Callable[[Any], Any]) -> Any:
    return None if value is None else make(value)
