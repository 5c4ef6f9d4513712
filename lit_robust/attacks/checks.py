"""Settings that no attack can have, refused in a sentence with the value that was probably meant."""

import math
from numbers import Integral, Real

from torch import Tensor

from lit_robust.attacks.norms import NORMS
from lit_robust.core.errors import UserError

# The largest L2 radius, as a share of the largest distance of two images: 97 for 3 channels of 224 by 224, 14 for 32 by
# 32. Published ones end at 10 and 1 there (MadryLab/robustness); 0.5 on a scale to 255 is 127.5. In L1 it is 768 for 32
# by 32, where published ones are about 12.
LARGEST_SHARE = 0.25


def check_eps(name: str, value: float, norm: str) -> None:
    """Refuse a radius or step that is no length, or of the wrong scale: 8 where 8 / 255 was meant.

    Args:
        name: of the setting, for the sentence, such as ``PGD eps``.
        value: in [0, 1] pixel units.
        norm: ``l1``, ``l2`` or ``linf``.

    Raises:
        UserError: not finite, negative, or beyond black to white in linf.
    """
    check_number(name, value)
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} is {value}: give a finite number, 0 or more, in [0, 1] pixel units.")
    if norm == "linf" and value > 1:
        raise UserError(
            f"{name} is {value:g} in linf, where 1 is black to white: did you mean {value:g}/255 = {value / 255:.5f}?"
        )


def check_step(name: str, value: float, eps: float, norm: str) -> None:
    """Refuse a step that is no length, or that crosses the whole ball, as that of another norm would.

    Args:
        name: of the setting, for the sentence, such as ``PGD step_size``.
        value: in the unit of ``eps``.
        eps: the radius; at 0 any step will do.
        norm: ``l1``, ``l2`` or ``linf``.

    Raises:
        UserError: not finite, negative, beyond black to white in linf, or above 2 eps.
    """
    check_eps(name, value, norm)
    # In a recipe fractions are rounded.
    if 0 < 2 * eps * (1 + 1e-6) < value:
        raise UserError(
            f"{name} is {value:g} at {norm} eps {eps:g}: a step above 2 eps = {2 * eps:.4g} crosses the whole ball, so "
            "it may be meant for another norm or eps. Give a smaller one, such as eps / 4; PGD takes null, too."
        )


def check_count(name: str, value: int, least: int) -> None:
    """Refuse what is not a whole number, or is too small.

    Args:
        name: of the setting, for the sentence, such as ``PGD steps``.
        value: what was given.
        least: the smallest that makes sense.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name} is {value!r}: give a whole number, {least} or more.")
    if value < least:
        raise UserError(f"{name} is {value}: give {least} or more.")


def check_number(name: str, value: float) -> None:
    """Refuse what is not a number, such as a word or a list.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"{name} is {value!r}: give a number.")


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
