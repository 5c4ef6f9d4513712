"""Three numbers, one a channel: a mean or a standard deviation, as a person or a file states it."""

import json
import math
from collections.abc import Iterable

from lit_robust.core.errors import UserError

Channels = tuple[float, float, float]


def three_numbers(value: object) -> Channels | None:
    """Return a list or tuple of three finite numbers as ``Channels``; None where ``value`` is none."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in value):
        return None
    red, green, blue = value
    return float(red), float(green), float(blue)


def three_numbers_in(text: str) -> Channels | None:
    """Return the three numbers of a JSON list; None where ``text`` is none."""
    try:
        return three_numbers(json.loads(text))
    except (ValueError, OverflowError, RecursionError):  # No JSON, a number past all floats, a list in a list in a ...
        return None


def in_pixel_units(mean: Iterable[float], std: Iterable[float]) -> bool:
    """Return whether a mean and a standard deviation can be those of pixels in [0, 1]; one of NaN can not."""
    return all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)


def channels_of_option(option: str, text: str | None) -> Channels | None:
    """Return what a person wrote for ``option``, a number per channel; null for null.

    Raises:
        UserError: it is no list of three numbers.
    """
    if text is None:
        return None
    found = three_numbers_in(text)
    if found is None:
        raise UserError(
            f"{option} is {text!r}, which is no list of three numbers: write one for each channel, as in "
            f'{option} "[0.5, 0.5, 0.5]".'
        )
    return found
