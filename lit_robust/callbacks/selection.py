"""Lists of samples of a test set, and which samples of the same or another set they mean."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import DataError, UserError

SCHEMA = 2
_READABLE = (1, SCHEMA)  # The first had numbers alone.
# What of a set's protocol tells which samples have which number; how they are resized does not matter.
_IDENTITY = ("split", "shards_sha256", "extra_shards_sha256", "info_sha256", "restricted", "skipped", "cells")
_PARTS = ("in_distribution", "out_of_distribution")


@dataclass(frozen=True)
class Selection:
    """Samples of a test set.

    Attributes:
        samples_sha256: digest that tells which set's numbers these are.
        count: how many samples the whole set has.
        numbers: of the chosen ones, ascending.
        names: theirs, in that order; empty where the set knew none.
        labels: theirs, in that order; empty with the names.
    """

    samples_sha256: str
    count: int
    numbers: tuple[int, ...]
    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Found:
    """The samples of a set that a list means.

    Attributes:
        numbers: theirs in that set, ascending.
        matched_by: ``number`` in the set that the list was written of, ``name`` in another.
        labels: what the list says that each shows; empty where samples were matched by number.
    """

    numbers: tuple[int, ...]
    matched_by: Literal["number", "name"]
    labels: tuple[int, ...] = ()


def samples_digest(described: EvaluationSet) -> str:
    """Return a sha256 over what settles which sample of a set has which number."""
    known = {name: described.protocol[name] for name in (*_IDENTITY, *_PARTS) if name in described.protocol}
    return hashlib.sha256(json.dumps([described.count, known], sort_keys=True, default=str).encode()).hexdigest()


def read_selection(file: Path) -> Selection:
    """Read what ``CorrectSamples`` wrote.

    Raises:
        UserError: it cannot be read, or is of another form.
    """
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] not in _READABLE:
            raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA}")
        numbers = tuple(int(number) for number in content["correct"])
        names = tuple(str(name) for name in content.get("names", ()))
        labels = tuple(int(label) for label in content.get("labels", ()))
        if len(names) not in (0, len(numbers)) or len(labels) != len(names):
            raise ValueError(f"it has {len(names)} names and {len(labels)} labels of {len(numbers)} samples")
        found = Selection(str(content["samples_sha256"]), int(content["count"]), numbers, names, labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no list of samples ({error}): give a correct-<dataset>.json that CorrectSamples wrote."
        ) from error
    if list(numbers) != sorted(set(numbers)) or (numbers and not 0 <= numbers[0] <= numbers[-1] < found.count):
        raise UserError(f"{file} lists a sample twice, or one that is none of {found.count}: write it again.")
    return found


def intersection(selections: Sequence[Selection]) -> Selection:
    """Return the samples that are in all of the selections.

    Raises:
        UserError: they are of different sets, or have no sample in common.

    Example:
        >>> intersection([Selection("a", 5, (0, 2, 4)), Selection("a", 5, (2, 3, 4))]).numbers
        (2, 4)
    """
    # The numbers are the same set's, so any list's names are those of all.
    first = next((each for each in selections if each.names), selections[0])
    if any((other.samples_sha256, other.count) != (first.samples_sha256, first.count) for other in selections):
        raise UserError("The lists of samples are of different sets: write all of them from the same shards.")
    common = set(first.numbers).intersection(*(other.numbers for other in selections))
    if not common:
        raise UserError("The lists of samples have none in common, so nothing is left to evaluate: give others.")
    places = [place for place, number in enumerate(first.numbers) if number in common]
    return replace(
        first,
        numbers=tuple(first.numbers[place] for place in places),
        names=tuple(first.names[place] for place in places if first.names),
        labels=tuple(first.labels[place] for place in places if first.labels),
    )


def image_name(key: str) -> str:
    """Return the last part of a sample's name, which stays the same in other folders and as another file type.

    Example:
        >>> image_name("fog/3/n01440764/ILSVRC2012_val_00000293.JPEG")
        'ILSVRC2012_val_00000293'
    """
    return key.rsplit("/", 1)[-1].split(".")[0]


def find_by_name(listed: Selection, described: EvaluationSet, key: Callable[[int], str]) -> Found:
    """Find the images of a list in a set of other shards, in each of its cells where it has some.

    Args:
        listed: the list, with names.
        described: the set.
        key: the name of each of its samples by its number.

    Raises:
        DataError: an image is not there, or its name is not its own, in the list or in the set.
    """
    cells = len(described.protocol.get("cells", ())) or 1
    labels = dict(zip(map(image_name, listed.names), listed.labels, strict=True))
    if len(labels) < len(listed.names):
        raise DataError(
            f"The list of samples gives {len(listed.names)} images {len(labels)} names, so they cannot be found in "
            f"{described.name}: evaluate the shards that it was written of."
        )
    times = dict.fromkeys(labels, 0)
    numbers, shows = [], []
    for number in range(described.count):
        name = image_name(key(number))
        if name in times:
            times[name] += 1
            numbers.append(number)
            shows.append(labels[name])
    for name, counted in times.items():
        if counted != cells:
            each = f", not once in each of the {cells} cells" if cells > 1 else ", not once"
            raise DataError(
                f"The set {described.name} has the listed image {name} {counted} times{each}: restrict a set of the "
                "same images, with the names that they had."
            )
    return Found(tuple(numbers), "name", tuple(shows))
