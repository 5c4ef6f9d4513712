"""Settings that no attack can have, refused in a sentence with the value that was probably meant."""

import math
from typing import Any, get_args

from torch import Tensor

from lit_robust.attacks.norms import NORMS
from lit_robust.core.errors import UserError

# The largest L2 radius, as a share of the largest distance of two images: 97 for 3 channels of 224 by 224, 14 for 32 by
# 32. Published ones end at 10 and 1 there (MadryLab/robustness); 0.5 on a scale to 255 is 127.5. In L1 it is 768 for 32
# by 32, where published ones are about 12.
LARGEST_SHARE = 0.25


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a word that is none of a ``Literal``'s.

    Args:
        name: of the setting, for the sentence, such as ``PGD norm``.
        value: what was given.
        choices: the ``Literal``.

    Raises:
        UserError: ``value`` is none of them.
    """
    if value not in get_args(choices):
        raise UserError(f"{name} is {value!r}: choose one of {', '.join(get_args(choices))}.")


def check_eps(name: str, value: float, norm: str) -> None:
    """Refuse a radius or step that is no length, or of the wrong scale: 8 where 8 / 255 was meant.

    Args:
        name: of the setting, for the sentence, such as ``PGD eps``.
        value: in [0, 1] pixel units.
        norm: ``l1``, ``l2`` or ``linf``.

    Raises:
        UserError: not finite, negative, or beyond black to white in linf.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} is {value!r}: give a number, in [0, 1] pixel units.")
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} is {value}: give a finite number, 0 or more, in [0, 1] pixel units.")
    if norm == "linf" and value > 1:
        raise UserError(
            f"{name} is {value:g} in linf, where 1 is black to white: did you mean {value:g}/255 = {value / 255:.5f}?"
        )


def check_reach(eps: float, norm: str, images: Tensor) -> None:
    """Refuse an L1 or L2 radius that leaves little of an image, as 255 times a usual one does.

    Args:
        eps: in [0, 1] pixel units.
        norm: ``l1``, ``l2`` or ``linf``.
        images: ``[B, C, H, W]``, whose shape alone is looked at.

    Raises:
        UserError: ``eps`` is longer than a quarter of the largest distance of two images of this shape.
    """
    if norm == "linf":
        return
    largest = LARGEST_SHARE * NORMS[norm].diameter(images.shape[1:])
    if eps > largest:
        raise UserError(
            f"{norm.upper()} eps {eps:g} is beyond {largest:.3g}, a quarter of the largest distance of two images of "
            f"shape {list(images.shape[1:])}: give eps in [0, 1] pixel units, where you may mean {eps:g}/255 = "
            f"{eps / 255:.3g}."
        )
