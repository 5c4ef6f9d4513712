"""Which tars make up a split, and what the info file beside them says of it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from lit_robust.errors import DataError, UserError

INFO_NAMES = ("_info.json", "info.json")
ALIASES = {"val": "validation", "validation": "val"}


@dataclass(frozen=True)
class Listing:
    """The tars of one split, in order.

    Attributes:
        folder: where they lie.
        split: name of the split as the info file spells it; None for all tars of a folder.
        files: paths relative to ``folder``.
        lengths: samples in each tar, where the info file tells.
        count: samples in all, where the info file tells.
        num_classes: how many classes there are, where the info file tells.
        class_names: name of each class, where the info file tells.
        categories: category name to class numbers, where the info file tells.
    """

    folder: Path
    split: str | None
    files: tuple[str, ...]
    lengths: tuple[int, ...] | None = None
    count: int | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    categories: Mapping[str, tuple[int, ...]] | None = None


def list_split(folder: Path, split: str | None) -> Listing:
    """Find the tars of a split.

    The info file, ``_info.json`` or ``info.json`` in timm's form (``timm/data/readers/reader_wds.py``), decides;
    without one, or for a split it does not have, the tars whose names contain the split as a word make up the split,
    sorted by name. ``val`` and ``validation`` mean the same.

    Args:
        folder: where the tars lie.
        split: name of the split; None takes all tars, or the only split of the info file.

    Raises:
        UserError: there is no such folder or split.
        DataError: the info file is malformed, or one of the tars is missing.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: check the path, or make shards with `lit-robust data shard`.")
    path, info = read_info(folder)
    splits: dict[str, Any] = info.get("splits", {})
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split is None and splits:
        raise UserError(f"{path} has the splits {', '.join(splits)}: name one of them.")
    candidates = [split, ALIASES[split]] if split in ALIASES else [split]
    for name in candidates:
        if name is not None and name in splits:
            return _from_info(path, info, name)
    claimed = {file for entry in splits.values() if isinstance(entry, dict) for file in entry.get("filenames", [])}
    names = sorted(file.name for file in folder.glob("*.tar") if file.name not in claimed)
    for name in candidates:
        if files := [file for file in names if _names_split(file, name)]:
            _check_gaps(folder, files)
            return Listing(folder, name, tuple(files))
    there = ", ".join(splits) or ", ".join(names[:3]) or "no tars"
    raise UserError(f"There is no split {split!r} in {folder}, which holds {there}: check folder and split.")


def read_info(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the info file's path and content; where there is none, the path it should have, and nothing.

    Raises:
        DataError: it is not JSON, or not of timm's form.
    """
    for path in (folder / name for name in INFO_NAMES):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): mend or remove it.") from error
        if not isinstance(content, dict) or not isinstance(content.get("splits"), dict):
            raise DataError(f'{path} has no object "splits": mend or remove it.')
        return path, content
    return folder / INFO_NAMES[0], {}


def _from_info(path: Path, info: Mapping[str, Any], split: str) -> Listing:
    entry = info["splits"][split]
    try:
        files = tuple(str(_relative(file)) for file in _words(entry["filenames"]))
        lengths = _numbers(entry["shard_lengths"]) if "shard_lengths" in entry else None
        count = _number(entry["num_samples"]) if "num_samples" in entry else None
        # The class that a publisher means may stand in another member than `cls`: to ignore that would mislabel.
        if entry.get("alt_label"):
            raise ValueError(f"alt_label {entry['alt_label']!r}, a label from the json member, is not supported")
        num_classes, class_names, categories = (
            entry.get(key, info.get(key)) for key in ("num_classes", "class_names", "categories")
        )
        listing = Listing(
            folder=path.parent,
            split=split,
            files=files,
            lengths=lengths,
            count=count,
            num_classes=None if num_classes is None else _number(num_classes),
            class_names=None if class_names is None else _words(class_names),
            categories=None if categories is None else {name: _numbers(ids) for name, ids in categories.items()},
        )
        if not files or len(set(files)) < len(files):
            raise ValueError("filenames is empty or names a file twice")
        if lengths is not None and len(lengths) != len(files):
            raise ValueError(f"{len(lengths)} shard_lengths for {len(files)} filenames")
        if lengths is not None and count is not None and sum(lengths) != count:
            raise ValueError(f"shard_lengths sum to {sum(lengths)}, num_samples is {count}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}, split {split!r}, is malformed ({error}): mend it.") from error
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(files)} shards that {path} lists for {split!r} are missing, the first is "
            f"{missing[0]}: copy or download them."
        )
    return listing


def _relative(file: str) -> PurePosixPath:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{file} lies outside the folder")
    return path


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number of at least 0")
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(_number(value) for value in values)


def _words(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{str(values)[:40]} is not a list of names")
    return tuple(values)


def _names_split(file: str, split: str | None) -> bool:
    # As a word: "val" is in "imagenet-val-0001.tar", but not in "retrieval-train-0001.tar".
    return split is None or re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z])", file, re.IGNORECASE) is not None


def _check_gaps(folder: Path, files: Sequence[str]) -> None:
    """Raise where numbered tars lack one between others; without an info file nothing else tells of a lost shard."""
    series: dict[tuple[str, str], list[int]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d+)(\D*)", file):
            series.setdefault((match[1], match[3]), []).append(int(match[2]))
    for (before, after), numbers in series.items():
        gap = next((low + 1 for low, high in pairwise(sorted(numbers)) if high > low + 1), None)
        if gap is not None:
            raise DataError(
                f"Shard number {gap} is missing in {folder} between {before}{min(numbers)}{after} and "
                f"{before}{max(numbers)}{after}: copy or download it, or list the shards in {INFO_NAMES[0]}."
            )
