"""The scans of a split's tars put together, and held against what info files and DALI's indexes say.

DALI's text index next to a tar (NVIDIA DALI, ``tools/wds2idx.py``): a line with the version and the number of samples,
then one line a sample with its members, each as extension, byte of the content, length and, from version 1.2 on, name.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import DataError
from lit_robust.core.files import read_regular
from lit_robust.shards.labels import LARGEST, LabelRule, text, too_high
from lit_robust.shards.listing import Listing
from lit_robust.shards.scan import IMAGE_EXTENSIONS, Handler, ShardScan
from lit_robust.shards.tar import Defect, DefectError, found_defect

FIELDS = {"v1.0": 3, "v1.1": 3, "v1.2": 4}


def read_dali(path: Path) -> tuple[int, Mapping[int, int]]:
    """Read an index; see `parse_dali`."""
    try:
        return parse_dali(str(path), read_regular(path).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): correct or remove it.") from error


def parse_dali(where: str, text: str) -> tuple[int, Mapping[int, int]]:
    """Return how many samples an index lists, and their images as byte of the content to length.

    Args:
        where: its path, for errors.
        text: its content.

    Raises:
        DataError: it is malformed.
    """
    lines = text.splitlines()
    try:
        version, count = lines[0].split()
        width = FIELDS[version]
        if int(count) != len(lines) - 1:
            raise ValueError(f"it announces {count} samples and lists {len(lines) - 1}")
        images: dict[int, int] = {}
        for line in lines[1:]:
            words = line.split(" ")
            # A name may hold blanks of its own, so a line cannot be cut at every fourth word.
            starts = _members(words, width)
            images |= {int(words[at + 1]): int(words[at + 2]) for at in starts if words[at].lower() in IMAGE_EXTENSIONS}
    except (IndexError, KeyError, ValueError) as error:
        raise DataError(f"{where} is not an index of DALI's ({error}): correct or remove it.") from error
    return int(count), images


def contradiction(scan: ShardScan, count: int, images: Mapping[int, int]) -> tuple[int, str] | None:
    """Return the byte and half a sentence where a tar and its index differ, or None.

    Samples that the scan left out because of a defect are not a contradiction.

    Args:
        scan: of the tar.
        count: samples that the index lists.
        images: byte to length, as the index has them.
    """
    if not scan.defects and len(scan.keys) != count:
        return 0, f"it holds {len(scan.keys)} samples, but the index of DALI lists {count}"
    for offset, length in zip(scan.offset.tolist(), scan.length.tolist(), strict=True):
        if images.get(offset) != length:
            said = f"{images[offset]} bytes" if offset in images else "nothing"
            return offset, f"there is an image of {length} bytes, where the index of DALI has {said}"
    return None


def _members(words: list[str], width: int) -> list[int]:
    """Return where each member begins: at a word that two numbers follow, and at least ``width`` words on."""
    starts: list[int] = []
    at = 0
    while at < len(words):
        if at + 2 < len(words) and words[at + 1].isdecimal() and words[at + 2].isdecimal():
            starts.append(at)
            at += width
        elif starts and width > 3:
            at += 1
        else:
            raise ValueError(f"{' '.join(words[at : at + 3])[:60]!r} is not a member")
    return starts


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Merged:
    """All samples of a split.

    Attributes:
        arrays: ``shard``, ``offset``, ``length``, ``extension``, ``label`` ``[N]``; ``keys``, the bytes of all keys
            together, and ``key_ends`` ``[N]``, where each ends.
        digest: sha256, in hexadecimal, over the names of the tars and all arrays.
        defects: what was passed over, in the order of the tars; their shards are relative to the folder.
        lost: samples that the info files promise and that are not here; None where they promise nothing.
        agrees: whether the tars hold what the info files promise; true where they promise nothing.
    """

    arrays: Arrays
    digest: str
    defects: tuple[Defect, ...]
    lost: int | None
    agrees: bool


def merge_scans(
    listing: Listing, scans: Sequence[ShardScan], on_defect: Handler, num_classes: int | None = None
) -> Merged:
    """Put the scans of a split together.

    Args:
        listing: of the split.
        scans: one for each of its tars.
        on_defect: called with every contradiction, every key that occurs in two tars, and every tar with classes that
            are too high; `refuse` or `skip`.
        num_classes: classes must be below; None where unknown.

    Raises:
        DefectError: the counts of an info file, or the places of an index of DALI's, are not those of the scans, such
            an index is malformed, a key occurs in two tars, or a class is too high; where ``on_defect`` is `refuse`.
    """
    defects = [
        Defect(file, defect.offset, defect.what)
        for file, scan in zip(listing.files, scans, strict=True)
        for defect in scan.defects
    ]

    def note(error: DefectError) -> None:
        on_defect(error)
        defects.append(error.found)

    before = len(defects)
    promised = _check_counts(listing, scans, note)
    kept_promises = len(defects) == before
    keys = [key for scan in scans for key in scan.keys]
    shard = np.repeat(np.arange(len(scans), dtype=np.int32), [len(scan.keys) for scan in scans])
    offset = np.concatenate([np.zeros(0, np.int64), *(scan.offset for scan in scans)])
    kept = np.ones(len(keys), dtype=bool)
    for number, other in duplicates(keys):
        file, first = listing.files[shard[number]], listing.files[shard[other]]
        sentence = (
            f"Sample {text(keys[number])} is in {listing.folder / first} and again in {listing.folder / file}: "
            "remove the shard that was copied twice, or write the shards again with keys of their own."
        )
        what = f"sample {text(keys[number])} is in {first} as well"
        note(found_defect(sentence, Defect(file, int(offset[number]), what)))
        kept[number] = False
    for file, scan, begin in zip(listing.files, scans, np.searchsorted(shard, range(len(scans))), strict=True):
        wrong = np.flatnonzero(scan.label >= (LARGEST if num_classes is None else num_classes))
        if len(wrong):
            note(_too_high(listing.folder, file, scan, wrong, num_classes or 0))
            kept[begin + wrong] = False
    whole: Arrays = {
        "shard": shard,
        "offset": offset,
        "length": np.concatenate([np.zeros(0, np.int64), *(scan.length for scan in scans)]),
        "extension": np.concatenate([np.zeros(0, np.uint8), *(scan.extension for scan in scans)]),
        "label": np.concatenate([np.zeros(0, np.int64), *(scan.label for scan in scans)]),
    }
    arrays = whole if kept.all() else {name: array[kept] for name, array in whole.items()}
    kept_keys = [key for key, keep in zip(keys, kept.tolist(), strict=True) if keep]
    arrays["keys"] = np.frombuffer(b"".join(kept_keys), dtype=np.uint8)
    arrays["key_ends"] = np.cumsum([len(key) for key in kept_keys], dtype=np.int64)
    lost = None if promised is None else max(promised - len(kept_keys), 0)
    return Merged(arrays, _digest(listing.files, arrays), tuple(defects), lost, kept_promises and not lost)


def claimed_classes(listing: Listing, rule: LabelRule) -> int | None:
    """Return how many classes there are; None where nobody says, or labels of another kind are asked for."""
    return listing.num_classes if rule == LabelRule().resolve(listing.label_field) else None


def duplicates(keys: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return the samples whose key occurred before, each with the number of the first that has it."""
    hashes = np.fromiter((hash(key) for key in keys), dtype=np.int64, count=len(keys))
    values, counts = np.unique(hashes, return_counts=True)
    first: dict[bytes, int] = {}
    suspects = np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist()
    found = [(number, first.setdefault(keys[number], number)) for number in suspects]
    return [(number, other) for number, other in found if number != other]


def dali_files(folder: Path, files: Sequence[str]) -> list[str | None]:
    """Return, for each tar, the name of DALI's index next to it, or None."""
    places = {parent: {path.name for path in (folder / parent).glob("*.idx")} for parent in set(map(_parent, files))}
    names = [f"{file.removesuffix('.tar')}.idx" for file in files]
    return [name if Path(name).name in places[_parent(file)] else None for name, file in zip(names, files, strict=True)]


def _parent(file: str) -> str:
    return str(Path(file).parent)


def _check_counts(listing: Listing, scans: Sequence[ShardScan], note: Handler) -> int | None:
    """Return how many samples are promised in all, or None, after a word on every promise that is not kept."""
    dali: list[int] = []
    for place, (file, index, scan) in enumerate(
        zip(listing.files, dali_files(listing.folder, listing.files), scans, strict=True)
    ):
        found, said = len(scan.keys), None if listing.lengths is None else listing.lengths[place]
        # Samples that were left out for a defect are named already.
        if said is not None and found != said and not (scan.defects and found < said):
            sentence = f"holds {found} samples, but the info file says {said}: copy or download the shard again."
            note(_contradiction(listing.folder, file, 0, sentence))
        if index is not None:
            try:
                count, images = read_dali(listing.folder / index)
            except DataError as unreadable:
                note(found_defect(str(unreadable), Defect(index, 0, "it is not an index of DALI's")))
                continue
            dali.append(count)
            if differs := contradiction(scan, count, images):
                sentence = f"contradicts {index} at byte {differs[0]}, {differs[1]}: make the index again."
                note(_contradiction(listing.folder, file, differs[0], sentence))
    if listing.lengths is None and listing.count is not None:
        total, defective = sum(len(scan.keys) for scan in scans), any(scan.defects for scan in scans)
        if total != listing.count and not (defective and total < listing.count):
            sentence = f"The shards {listing.name} hold {total} samples, but the info file says {listing.count}"
            defect = Defect(listing.info[-1], 0, f"it says {listing.count} samples, but there are {total}")
            note(found_defect(f"{sentence}: copy or download the shards again.", defect))
    if listing.lengths is not None:
        return sum(listing.lengths)
    return listing.count if listing.count is not None or len(dali) < len(scans) else sum(dali)


def _contradiction(folder: Path, file: str, offset: int, sentence: str) -> DefectError:
    return found_defect(f"{folder / file} {sentence}", Defect(file, offset, "it " + sentence.rpartition(":")[0]))


def _too_high(folder: Path, file: str, scan: ShardScan, wrong: NDArray[np.intp], num_classes: int) -> DefectError:
    highest = int(wrong[np.argmax(scan.label[wrong])])
    key, offset = text(scan.keys[highest]), int(scan.offset[highest])
    what = too_high(int(scan.label[highest]), num_classes)
    count = f"samples with a class beyond the {num_classes} of the info file: {len(wrong)}, the highest is {key}"
    sentence = f"The sample {key} in {folder / file} at byte {offset} has {what}."
    return found_defect(sentence, Defect(file, offset, f"{count} ({what})"))


def _digest(files: Sequence[str], arrays: Arrays) -> str:
    digest = hashlib.sha256(json.dumps(files).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {len(array)} ".encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
