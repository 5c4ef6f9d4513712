"""Class numbers of classes that are known by name, and files that name the class of each image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.packing.encode import is_picture
from lit_robust.reference import imagenet_names, imagenet_subset, imagenet_wnids

Labels = Literal["auto", "sorted", "imagenet"]
DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Classes:
    """How classes are numbered.

    Attributes:
        numbers: name of a class, as folders or label files have it, to its number.
        names: what to call each class; empty where nobody said.
        rule: half a sentence for the user.
    """

    numbers: dict[str, int]
    names: Sequence[str]
    rule: str


def number_classes(classes: Sequence[str], labels: Labels, known: Sequence[str] = ()) -> Classes:
    """Number classes by their place among those given, those known, or ImageNet's 1,000 WordNet ids.

    A set of numbers is read as numbers: 2 comes before 10. Folders named 0, 1 and so on to the last keep their numbers,
    as in ImageNet-V2.

    Args:
        classes: every class once, sorted.
        labels: ``sorted`` or ``imagenet``; ``auto`` is ``imagenet`` for all 1,000 classes and for the 200 of ImageNet-A
            or ImageNet-O, else ``sorted``.
        known: all classes, in the order of their numbers, where ``classes`` may be some of them.

    Raises:
        UserError: a class is not one of those known, or of ImageNet's, where it should be.
    """
    wnids = imagenet_wnids()
    english = dict(zip(wnids, imagenet_names(), strict=True))
    names = [english.get(name, name) for name in classes]
    if known:
        places = {english.get(name, name): number for number, name in enumerate(known)}
        if unknown := [name for name in classes if english.get(name, name) not in places]:
            raise UserError(f"{unknown[0]!r} is not among the other split's {len(known)} classes: remove it.")
        numbers = {name: places[own_name] for name, own_name in zip(classes, names, strict=True)}
        return Classes(numbers, list(places), f"numbered as the {len(known)} of the other split")
    if classes and all(DIGITS.fullmatch(name) for name in classes):
        return _of_numbers(classes, labels)
    if labels == "imagenet" or (labels == "auto" and _is_known_set(classes)):
        places = {wnid: number for number, wnid in enumerate(wnids)}
        if unknown := [name for name in classes if name not in places]:
            raise UserError(
                f"{unknown[0]!r} is not one of ImageNet's 1,000 WordNet ids: set labels to sorted for other classes."
            )
        return Classes({name: places[name] for name in classes}, imagenet_names(), "numbered as ImageNet's 1,000")
    rule = "numbered by their sorted names"
    if labels == "auto" and english.keys() >= set(classes):
        rule += f", 0 to {len(classes) - 1}; all are ImageNet's: a network of its 1,000 needs --labels imagenet here"
    return Classes({name: number for number, name in enumerate(classes)}, names, rule)


def _of_numbers(classes: Sequence[str], labels: Labels) -> Classes:
    ordered = sorted(classes, key=int)
    values = [int(name) for name in ordered]
    if repeated := next((i for i in range(1, len(values)) if values[i] == values[i - 1]), None):
        first, other = ordered[repeated - 1 : repeated + 1]
        raise UserError(f"The classes {first!r} and {other!r} are one number: rename one.")
    if labels == "imagenet" or values == list(range(len(values))):
        given = given_numbers(classes, labels)
        return replace(given, names=given.names or ordered)
    rule = f"numbered in the order of their numbers: {ordered[0]} is class 0, {ordered[-1]} is class {len(values) - 1}"
    return Classes({name: number for number, name in enumerate(ordered)}, ordered, rule)


def given_numbers(classes: Sequence[str], labels: Labels) -> Classes:
    """Return classes that are numbers already, written as digits.

    Raises:
        UserError: ``labels`` says they are ImageNet's, and one is 1,000 or more; or it is ``auto``, and they begin
            at 1.
    """
    numbers = {name: int(name) for name in classes}
    highest = max(numbers.values(), default=0)
    found = set(numbers.values())
    # Counted first: a label may have 18 digits.
    if labels == "auto" and len(found) == highest > 1 and min(found) == 1:
        raise UserError(
            f"The classes are numbered 1 to {highest}, but a network's are numbered from 0: subtract 1 from each, or "
            "give --labels sorted to keep them as they are."
        )
    if labels == "sorted" or (labels == "auto" and found != set(range(1000))):
        return Classes(numbers, (), "numbered as their names say")
    if highest >= 1000:
        raise UserError(
            f"Class {highest} is not one of ImageNet's 1,000, numbered from 0 to 999: subtract 1 from each where they "
            "begin at 1, or leave out --labels imagenet."
        )
    return Classes(numbers, imagenet_names(), "numbered as their names say, ImageNet's 1,000")


def _is_known_set(classes: Sequence[str]) -> bool:
    wnids = imagenet_wnids()
    known = (range(len(wnids)), imagenet_subset("imagenet-a"), imagenet_subset("imagenet-o"))
    return any(set(classes) == {wnids[number] for number in numbers} for numbers in known)


WNID = re.compile(r"n\d{8}")


def parse_labels(text: str, where: str, names: Sequence[str]) -> dict[str, str]:
    """Return image name without ending to class: a WordNet id, or a class number as digits.

    Three forms are known: lines of a name and a class, with spaces, tabs or a comma between and anything after, such as
    Tiny-ImageNet's ``val_annotations.txt``; ILSVRC's ``LOC_val_solution.csv`` of Kaggle, the same with a heading; and
    one WordNet id a line, in the order of the images' names, such as ``imagenet_2012_validation_synset_labels.txt``.

    Args:
        text: content of the file.
        where: its path, for errors.
        names: file names of the images, in order.

    Raises:
        DataError: it has another form, names an image twice, or has not as many lines as there are images.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if lines and lines[0][1].lower().startswith("imageid,"):
        del lines[0]
    if not lines:
        raise DataError(f"The label file {where} is empty: give lines of an image's name and its class.")
    if all(len(_fields(line)) == 1 for _, line in lines):
        return _in_order([line for _, line in lines], where, names)
    labels: dict[str, str] = {}
    for number, line in lines:
        name, *rest = _fields(line)
        label = rest[0].split()[0] if rest else ""
        if not WNID.fullmatch(label) and not DIGITS.fullmatch(label):
            raise DataError(
                f"Line {number} of the label file {where} is {line[:60]!r}: write the image's name and its class, a "
                "WordNet id or number."
            )
        if stem(name) in labels:
            raise DataError(f"Line {number} of the label file {where} names {name} again: leave one line an image.")
        labels[stem(name)] = label
    if len({bool(DIGITS.fullmatch(label)) for label in labels.values()}) > 1:
        raise DataError(f"The label file {where} mixes WordNet ids and numbers: use one of them throughout.")
    return labels


def labels_of(names: Sequence[str], labels: Mapping[str, str], where: str) -> list[str]:
    """Return the class of each image.

    Raises:
        DataError: an image is not named.
    """
    lacking = [name for name in names if stem(name) not in labels]
    if lacking:
        raise DataError(
            f"The label file {where} has no line for {len(lacking)} of {len(names)} images, the first is {lacking[0]}: "
            "add them, or remove the images."
        )
    return [labels[stem(name)] for name in names]


def stem(name: str) -> str:
    """Return a file's name without folders and ending."""
    return PurePosixPath(name).stem if is_picture(name) else PurePosixPath(name).name


def _fields(line: str) -> list[str]:
    fields = line.split(",", 1) if "," in line else line.split(None, 1)
    return [field.strip() for field in fields if field.strip()]


def _in_order(labels: Sequence[str], where: str, names: Sequence[str]) -> dict[str, str]:
    if all(DIGITS.fullmatch(label) for label in labels):
        raise DataError(
            f"The label file {where} holds bare numbers, and those of ILSVRC's development kit are ILSVRC ids, not "
            "places among the sorted WordNet ids that networks use: give WordNet ids, or names and classes."
        )
    wrong = next((place for place, label in enumerate(labels) if not WNID.fullmatch(label)), None)
    if wrong is not None:
        raise DataError(f"The label file {where} has {labels[wrong][:60]!r} among WordNet ids: write one id a line.")
    if len(labels) != len(names):
        raise DataError(
            f"The label file {where} has {len(labels)} WordNet ids for {len(names)} images: give one an image, in "
            "the order of their names."
        )
    return dict(zip((stem(name) for name in names), labels, strict=True))
