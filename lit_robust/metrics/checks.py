"""What a batch may not hold: labels out of range and values that are not numbers, all asked of the device at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_robust.core.errors import DataError
from lit_robust.metrics.class_numbers import on_device

# Which samples are wrong, ``[B]`` bool, and what to say of the one in a place.
Check = tuple[Tensor, Callable[[int], str]]


def refuse(*checks: Check) -> None:
    """Raise a DataError about the first sample that a check finds; the device is waited for once, for all checks.

    Args:
        checks: masks of the same length, which may be 0.
    """
    found = torch.stack([wrong for wrong, _ in checks])
    if found.any():
        number, place = found.nonzero()[0].tolist()
        raise DataError(checks[number][1](place))


def numbered(values: Tensor, count: int, what: str, fix: str) -> Check:
    """Return the check that values ``[B]`` int64 are numbers from 0 to ``count - 1``.

    Args:
        values: such as the categories of the textures.
        count: how many there are.
        what: what to call a value, such as ``texture``.
        fix: what to do about others.
    """
    return (
        (values < 0) | (values >= count),
        lambda place: f"An image has {what} {int(values[place])}, where numbers go from 0 to {count - 1}: {fix}.",
    )


def labelled(labels: Tensor, num_classes: int, classes: Sequence[int] = ()) -> Check:
    """Return the check that labels ``[B]`` int64 are a network's classes, and of those that are decided among.

    Args:
        labels: what images show.
        num_classes: classes of the network.
        classes: the classes a decision is taken among; empty for all.
    """
    outside = (labels < 0) | (labels >= num_classes)
    if classes:
        outside = outside | ~torch.isin(labels, on_device(tuple(classes), labels.device))
    among = f"the {len(classes)} classes of the set" if classes else f"the network's {num_classes} classes"
    return (
        outside,
        lambda place: (
            f"An image has label {int(labels[place])}, which is none of {among}: evaluate with a network and a set "
            "that have the same classes."
        ),
    )


def answered(answers: Tensor) -> Check:
    """Return the check that answers, ``[B]`` or ``[B, N]``, are numbers: logits, or what was computed from them."""
    wrong = answers.isnan() if answers.ndim == 1 else answers.isnan().any(1)
    return (
        wrong,
        lambda place: (
            f"The network's answer to image {place} of a batch is not a number: check its weights and precision."
        ),
    )


def finite(scores: Tensor) -> Check:
    """Return the check that scores ``[B]`` are finite, as a rank among them needs."""
    return (
        ~scores.isfinite(),
        lambda place: (
            f"The score of image {place} of a batch is {float(scores[place])}: give finite scores, or check the "
            "network's weights and precision."
        ),
    )
