"""What people's folders look like: from the names of the files alone; and what names of cue-conflict images say."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import of_recipes
from lit_robust.data.packing.classes import WNID
from lit_robust.reference import imagenet_categories, imagenet_subset, imagenet_wnids, known_corruptions
from lit_robust.reference.corruption_baselines import SEVERITIES
from lit_robust.shards.listing import ALIASES

# <shape><number>-<texture><number>, as in rgeirhos/texture-vs-shape; its decision files put a prefix before a "_".
KEY = re.compile(r"([a-z]+)\d+-([a-z]+)\d+$")


def cues(key: str) -> tuple[str, str]:
    """Return the names of shape and texture that a sample's key or a published file name holds.

    Example:
        >>> cues("cue-conflict/airplane/airplane7-bear2")
        ('airplane', 'bear')

    Raises:
        DataError: the key is of another form.
    """
    match = KEY.search(key.rsplit("/", 1)[-1].rsplit("_", 1)[-1])
    if match is None:
        raise DataError(f"The cue-conflict image {key!r} is not named <shape><number>-<texture><number>: rename it.")
    return match[1], match[2]


# 0001_cl_dnn_cr_oven_40_n04111531_14126: trial, experiment, observer, condition, category, number, the image's name, as
# in bethgelab/model-vs-human; a key in shards has "_" where the file's name has a dot.
TRIAL = re.compile(r"\d+_[a-z0-9]+_[a-z0-9]+_([a-z]*\d*(?:[._-]\d+)*)_([a-z]+)_\d+_[^/]+$")


def condition_name(given: str) -> str:
    """Return a condition in one spelling, however a stimulus or a table of decisions has it.

    Example:
        >>> [condition_name(name) for name in ("0.90", "0_90", "3.0", "True", "c05", "1-10-10", "inf")]
        ['0.9', '0.9', '3', 'true', 'c05', '1-10-10', 'inf']
    """
    try:
        return f"{float(given.replace('_', '.')):g}"
    except ValueError:
        return given.lower()


def condition_and_category(key: str) -> tuple[str, str]:
    """Return the condition and the category that a sample's key holds: in its name, else ``0`` and its folder.

    Example:
        >>> condition_and_category("s1/0001_nse_dnn_0_35_knife_10_n03041632_82878"), condition_and_category("dog/dog1")
        (('0.35', 'knife'), ('0', 'dog'))
    """
    folder, _, base = key.rpartition("/")
    match = TRIAL.match(base)
    return (condition_name(match[1]), match[2]) if match else ("0", folder.rsplit("/", 1)[-1])


def read_categories(source: str) -> dict[str, tuple[int, ...]]:
    """Return category name to class numbers, in alphabetical order, which is the order of a category's number.

    Args:
        source: ``imagenet`` for the 16 published categories, or a JSON file ``{"category": [classes], ...}``, such
            as ``configs/tiny-imagenet/categories-26.json``, which is found from any folder.

    Raises:
        UserError: the file is missing or of another form.
    """
    if source == "imagenet":
        return imagenet_categories()
    try:
        content = json.loads(of_recipes(source).read_text(encoding="utf-8"), object_pairs_hook=_once)
        if not isinstance(content, dict) or not all(_are_numbers(classes) for classes in content.values()):
            raise ValueError("it is not an object of lists of whole numbers")
        categories = {name: tuple(classes) for name, classes in sorted(content.items())}
        numbers = [number for classes in categories.values() for number in classes]
        if not all(categories.values()) or not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise ValueError("every category needs classes of its own, numbered from 0")
        return categories
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f'The categories file {source} cannot be read ({error}): it must be JSON, {{"category": [classes]}}.'
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, in which Python would let the last of several equal names win."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def _are_numbers(classes: Any) -> bool:
    # A bool is an int, and a word a sequence, to Python.
    return isinstance(classes, list) and all(type(number) is int for number in classes)


ANNOTATIONS = "val_annotations.txt"
TINY_TEST = re.compile(r"(images/)?test_\d+\.JPEG")
Layout = Literal[
    "auto",
    "class-folders",
    "flat",
    "wnid-names",
    "tiny-imagenet-val",
    "imagenet-c",
    "imagenet-a",
    "imagenet-o",
    "cue-conflict",
    "human-stimuli",
]


def find_root(images: Sequence[str], split: str, annotated: Iterable[str], labelled: bool) -> str:
    """Return the folder that the images of a split lie under, with a ``/`` at its end; empty for the source itself.

    Archives often hold one folder with everything in it, and that again one a split.

    Args:
        images: their paths below the source.
        split: name of the split.
        annotated: folders with an annotations file of Tiny-ImageNet's.
        labelled: whether there is a label file, so that images need no folders of their classes.
    """
    root = ""
    names = list(images)
    while names and all("/" in name for name in names):
        tops = {name.split("/")[0] for name in names}
        chosen = [top for top in (split, ALIASES.get(split), *tops) if top in tops]
        top = chosen[0]
        if len(tops) > 1 and top not in (split, ALIASES.get(split)):
            break
        below = [name[len(top) + 1 :] for name in names if name.startswith(f"{top}/")]
        if not _is_outer(top, below, root + top in annotated, labelled):
            break
        root, names = f"{root}{top}/", below
    return root


def recognise(images: Sequence[str], others: Sequence[str], labelled: bool, where: str) -> Layout:
    """Return the layout of a source.

    Args:
        images: paths of the images.
        others: paths of the other files.
        labelled: whether there is a label file.
        where: what to call the source.

    Raises:
        UserError: its layout is not known.
    """
    if labelled:
        return "flat"
    if ANNOTATIONS in others:
        return "tiny-imagenet-val"
    if cells := {name.split("/")[0] for name in images if cell_of(name)}:
        if besides := sorted({name.split("/")[0] for name in images} - cells):
            raise UserError(
                f"{where} holds {besides[0]} besides the cells of ImageNet-C: pack the folder of each set by itself."
            )
        return "imagenet-c"
    if all(TINY_TEST.fullmatch(name) for name in images):
        raise UserError(
            f"The images of {where} are the test images of Tiny-ImageNet, whose classes were never published: pack its "
            "validation images, --split val."
        )
    if all(TRIAL.match(name.rsplit("/", 1)[-1]) for name in images):
        return "human-stimuli"
    loose = [name for name in images if "/" not in name]
    if len(loose) == len(images):
        if all(_is_wnid_name(name) for name in loose):
            return "wnid-names"
        raise UserError(
            f"The images of {where} lie in one folder without their classes: give a --label-file, such as "
            "LOC_val_solution.csv for ImageNet's validation images."
        )
    inside = [name for name in images if "/" in name]
    if all(_is_cue_conflict(name) for name in inside):
        return "cue-conflict"
    classes = {name.split("/")[0] for name in inside}
    if len(classes) == 1 and not WNID.fullmatch(min(classes)):
        raise UserError(
            f"All images of {where} lie in {min(classes)}: give --layout class-folders if that is their one class, a "
            "--label-file or another folder if not."
        )
    if classes <= set(map(str, SEVERITIES)) and all(WNID.fullmatch(name.split("/")[1]) for name in inside):
        raise UserError(
            f"The folders {', '.join(sorted(classes))} of {where} hold folders of classes, as the severities of one "
            "corruption do: pack the folder above, which has the corruptions."
        )
    for published in ("imagenet-a", "imagenet-o"):
        if classes == {imagenet_wnids()[number] for number in imagenet_subset(published)}:
            return published
    return "class-folders"


def cell_of(name: str) -> str | None:
    """Return the cell of ImageNet-C, such as ``fog/3``, that a path is of; None for others.

    Args:
        name: ``[<group>/]<corruption>/<severity>/<class>/<file>``.
    """
    parts = name.split("/")
    if len(parts) < 4 or parts[-4] not in known_corruptions() or parts[-3] not in map(str, SEVERITIES):
        return None
    return f"{parts[-4]}/{parts[-3]}"


def _is_outer(top: str, below: Sequence[str], annotated: bool, labelled: bool) -> bool:
    """Return whether a folder merely holds the images, and is not a class or corruption itself."""
    if annotated or (top == "test" and all(TINY_TEST.fullmatch(name) for name in below)):
        return True
    if WNID.fullmatch(top) or top in known_corruptions() or all(_is_cue_conflict(f"{top}/{name}") for name in below):
        return False
    if all("/" in name for name in below):
        return {name.split("/")[0] for name in below} != {"images"} or labelled
    return labelled or all(_is_wnid_name(name) for name in below)


def _is_wnid_name(name: str) -> bool:
    wnid, _, rest = name.partition("_")
    return WNID.fullmatch(wnid) is not None and bool(rest)


def _is_cue_conflict(name: str) -> bool:
    folder, _, base = name.rpartition("/")
    match = KEY.fullmatch(PurePosixPath(base).stem)
    return match is not None and match[1] == folder
