"""What files next to the tars say of them, as claims; from text alone, wherever that was read.

Each form is known from the code that reads or writes it: timm's ``_info.json`` (``timm/data/readers/reader_wds.py``),
open_clip's ``sizes.json`` and ``__len__`` (``open_clip_train/data.py``, ``get_dataset_size``), the shard lists of wids
(``wids/wids_specs.py``), img2dataset's ``00000_stats.json`` (``img2dataset/logger.py``), and CLIP benchmark's
``nshards.txt`` (``clip_benchmark/datasets/builder.py``).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from lit_robust.core.errors import DataError, printable
from lit_robust.core.files import read_regular

GENERATED = "generated"  # In a split's entry: what this suite made the images by, and of which.
TIMM_NAMES = ("_info.json", "info.json")
LARGEST_COUNT = 10**9  # of samples, or of classes
LONGEST_PATH = 4000
STATS = re.compile(r"(.+)_stats\.json")


@dataclass(frozen=True)
class SplitClaim:
    """What an info file of timm's form says of one split.

    Attributes:
        files: its tars in order, as paths relative to the info file's folder.
        lengths: samples in each.
        digests: sha256 of the bytes of each, in hexadecimal.
        count: samples in all.
        num_classes: how many classes there are.
        class_names: name of each class.
        categories: category name to class numbers.
        label_field: field of a sample's ``json`` member that holds its class.
    """

    files: tuple[str, ...]
    lengths: tuple[int, ...] | None = None
    digests: tuple[str, ...] | None = None
    count: int | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    categories: Mapping[str, tuple[int, ...]] | None = None
    label_field: str | None = None


@dataclass(frozen=True)
class Info:
    """What one info file says.

    Attributes:
        where: its path or URL.
        splits: by name, in timm's form.
        lengths: tar to samples in it, in order, from files that do not speak of splits.
        count: samples in all tars of the folder.
        shards: number of tars of the folder.
        title: what a shard list of wids calls itself, in its name and in the file's.
    """

    where: str
    splits: Mapping[str, SplitClaim] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    count: int | None = None
    shards: int | None = None
    title: str | None = None

    @property
    def name(self) -> str:
        """The info file's own name."""
        return _file_name(self.where)


def is_known(name: str) -> bool:
    """Tell whether a file of this name is an info file whatever it holds."""
    return name in READERS or STATS.fullmatch(name) is not None


def may_be_info(name: str) -> bool:
    """Tell whether a file of this name can be an info file; one more ``.json`` may turn out to be none."""
    return name in READERS or name.endswith(".json")


def parse_info(where: str, text: str) -> Info | None:
    """Read an info file.

    Args:
        where: its path or URL; the last part tells the form.
        text: its content.

    Returns:
        What it says, or None for a ``.json`` that is not an info file; ``info.json`` is a name that many programs use.

    Raises:
        DataError: it is malformed, or names a tar outside of its folder.
    """
    name = _file_name(where)
    try:
        if name in READERS:
            return READERS[name](where, text)
        if match := STATS.fullmatch(name):
            return _img2dataset(where, text, f"{match[1]}.tar")
        # Other software keeps JSON of its own next to the tars.
        if '"shardlist"' in text and isinstance(content := json.loads(text), dict) and "shardlist" in content:
            return _wids(where, content)
    except _MalformedError as error:
        raise DataError(printable(f"{where}{error.place} is malformed ({error}): correct or remove it.")) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(printable(f"{where} cannot be read ({_say(error)}): correct or remove it.")) from error
    return None


def read_info(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and content of the info file of timm's form; where there is none, where it should be.

    Raises:
        DataError: it is not JSON, or malformed.
    """
    for path in (folder / name for name in TIMM_NAMES):
        try:
            text = read_regular(path).decode("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): correct or remove it.") from error
        if parse_info(str(path), text) is not None and "splits" in (content := json.loads(text)):
            return path, content
    return folder / TIMM_NAMES[0], {}


class _MalformedError(ValueError):
    """What is wrong, and in which part of the file."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what)
        self.place = place


def _timm(where: str, text: str) -> Info | None:
    content = json.loads(text)
    if isinstance(content, dict) and "splits" not in content and "shardlist" in content:
        return _wids(where, content)
    if _file_name(where) == TIMM_NAMES[1] and not _speaks_of_tars(content):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("splits"), dict):
        raise ValueError('there is no object "splits"')
    return Info(where, splits={name: _split(name, entry, content) for name, entry in content["splits"].items()})


def _speaks_of_tars(content: Any) -> bool:
    """Tell whether an object is of timm's form, perhaps with mistakes, rather than some other program's."""
    splits = content.get("splits") if isinstance(content, dict) else None
    entries = list(splits.values()) if isinstance(splits, dict) else []
    return splits == {} or any(isinstance(entry, dict) and "filenames" in entry for entry in entries)


def _split(name: str, entry: Any, content: Mapping[str, Any]) -> SplitClaim:
    try:
        if not isinstance(entry, dict):
            raise ValueError('it is not an object with "filenames"')
        num_classes, class_names, categories = (
            entry.get(key, content.get(key)) for key in ("num_classes", "class_names", "categories")
        )
        label_field = entry.get("alt_label") or None
        claim = SplitClaim(
            files=tuple(_inside(file) for file in _words(entry["filenames"])),
            lengths=tuple(map(_number, entry["shard_lengths"])) if "shard_lengths" in entry else None,
            digests=tuple(map(_sha256, entry["shard_sha256"])) if "shard_sha256" in entry else None,
            count=_number(entry["num_samples"]) if "num_samples" in entry else None,
            num_classes=None if num_classes is None else _number(num_classes),
            class_names=None if class_names is None else _words(class_names),
            categories=None
            if categories is None
            else {name: tuple(map(_number, ids)) for name, ids in categories.items()},
            label_field=None if label_field is None else _words([label_field])[0],
        )
        if not claim.files or len(set(claim.files)) < len(claim.files):
            raise ValueError("filenames is empty or names a file twice")
        for what, given in (("shard_lengths", claim.lengths), ("shard_sha256", claim.digests)):
            if given is not None and len(given) != len(claim.files):
                raise ValueError(f"{len(given)} {what} for {len(claim.files)} filenames")
        _number(sum(claim.lengths or ()))
        if None not in (claim.lengths, claim.count) and sum(claim.lengths or ()) != claim.count:
            raise ValueError(f"shard_lengths sum to {sum(claim.lengths or ())}, num_samples is {claim.count}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _MalformedError(_say(error), f", split {name!r},") from error
    return claim


def _wids(where: str, content: Mapping[str, Any]) -> Info:
    lengths: dict[str, int] = {}
    for shard in content["shardlist"]:
        url = shard["url"]
        # Lists are often made elsewhere and copied along with their tars: only the last part still holds then.
        elsewhere = bool(urlsplit(url).scheme) or PurePosixPath(url).is_absolute()
        file = PurePosixPath(urlsplit(url).path).name if elsewhere else _inside(url)
        if not file or file in lengths:
            raise ValueError(f"{url!r} names no file, or one that another url names")
        lengths[file] = _number(shard["nsamples"])
    return Info(where, lengths=lengths, title=f"{PurePosixPath(where).stem} {content.get('name', '')}")


def _img2dataset(where: str, text: str, file: str) -> Info | None:
    content = json.loads(text)
    if not isinstance(content, dict) or "successes" not in content:
        return None
    return Info(where, lengths={file: _number(content["successes"])})


def _sizes(where: str, text: str) -> Info:
    return Info(where, lengths={_inside(file): _digits(str(count)) for file, count in json.loads(text).items()})


READERS: dict[str, Callable[[str, str], Info | None]] = {
    **dict.fromkeys(TIMM_NAMES, _timm),
    "sizes.json": _sizes,
    "__len__": lambda where, text: Info(where, count=_digits(text)),
    "nshards.txt": lambda where, text: Info(where, shards=_digits(text)),
}


def _file_name(where: str) -> str:
    # Of a URL's query nothing is shown but that there is one.
    return PurePosixPath(where).name.removesuffix("?...")


def _inside(file: str) -> str:
    path = PurePosixPath(file)
    if len(file) > LONGEST_PATH or any(len(part.encode("utf-8", "replace")) > 255 for part in path.parts):
        raise ValueError(f"{file[:40]!r}... is longer than a file's name can be")
    if path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file or not path.name:
        raise ValueError(f"{file!r} lies outside the folder")
    if any("\ud800" <= letter <= "\udfff" for letter in file):
        raise ValueError(f"{file!r} holds half a letter, which no address can")
    return str(path)


def _digits(text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,18}\s*", text):
        raise ValueError(f"{text.strip()[:40]!r} is not a whole number of at least 0")
    return _number(int(text))


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number of at least 0")
    if value > LARGEST_COUNT:
        raise ValueError(f"{str(value)[:30]} is more than a set can have")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{str(value)[:80]!r} is not a sha256 in hexadecimal")
    return value


def _words(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{str(values)[:40]} is not a list of names")
    return tuple(values)


def _say(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
