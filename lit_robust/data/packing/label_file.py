"""Files that name the class of each image: Tiny-ImageNet's, Kaggle's, and plain lists."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from lit_robust.core.errors import DataError
from lit_robust.data.packing.classes import DIGITS
from lit_robust.data.packing.encode import is_picture

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
