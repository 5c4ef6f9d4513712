"""What the name of a cue-conflict image says, and the categories that a classifier's classes make up."""

import json
import re
from pathlib import Path
from typing import Any

from lit_robust.core.errors import DataError, UserError
from lit_robust.reference import imagenet_categories

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


def read_categories(source: str) -> dict[str, tuple[int, ...]]:
    """Return category name to class numbers, in alphabetical order, which is the order of a category's number.

    Args:
        source: ``imagenet`` for the 16 published categories, or a JSON file ``{"category": [classes], ...}``.

    Raises:
        UserError: the file is missing or of another form.
    """
    if source == "imagenet":
        return imagenet_categories()
    try:
        content = json.loads(Path(source).read_text(encoding="utf-8"), object_pairs_hook=_once)
        if not isinstance(content, dict) or not all(_are_numbers(classes) for classes in content.values()):
            raise ValueError("it is no object of lists of whole numbers")
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
