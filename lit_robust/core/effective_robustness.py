"""Effective robustness: accuracy on a shifted set beyond what the clean accuracy lets expect (Taori et al. 2020)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import linear_regression

from lit_robust.core.errors import UserError


@dataclass(frozen=True)
class Line:
    """A line between accuracies on logit axes, ``logit(shifted) = intercept + slope * logit(clean)``.

    Attributes:
        slope: of the line.
        intercept: of the line.
        deviation: standard deviation of the networks about it, in logits.
        count: networks that it was fit to.
    """

    slope: float
    intercept: float
    deviation: float
    count: int

    def expected(self, clean: float) -> float:
        """Return the accuracy on the shifted set that the line gives for an accuracy on the clean one."""
        return 1 / (1 + math.exp(-self.intercept - self.slope * _logit(clean)))


def fit_line(clean: Sequence[float], shifted: Sequence[float]) -> Line:
    """Fit a line by least squares to the logits of networks' accuracies.

    Args:
        clean: accuracies of the networks on the clean set, fractions.
        shifted: of the same networks on the shifted set.

    Raises:
        UserError: there are fewer than three networks, all are alike on the clean set, or an accuracy has no logit.
    """
    if len(clean) != len(shifted) or len(clean) < 3 or len(set(clean)) < 2:
        raise UserError(
            f"There are {len(clean)} and {len(shifted)} accuracies, {len(set(clean))} of them different: give those of "
            "three networks or more."
        )
    x, y = [_logit(value) for value in clean], [_logit(value) for value in shifted]
    slope, intercept = linear_regression(x, y)
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return Line(slope, intercept, math.sqrt(left / (len(x) - 2)), len(x))


def effective_robustness(clean: float, shifted: float, line: Line) -> float:
    """Return ``shifted - expected(clean)``, a difference of fractions: positive above the line.

    Args:
        clean: the network's accuracy on the clean set; of the same classes as those of the line.
        shifted: its accuracy on the shifted set.
        line: of other networks, such as ``fit_line`` of ``reference.standard_networks``.

    Example:
        >>> line = fit_line([0.6, 0.7, 0.8], [0.3, 0.4, 0.55])
        >>> round(effective_robustness(0.7, 0.45, line), 3)
        0.045
    """
    return shifted - line.expected(clean)


def _logit(value: float) -> float:
    if not isinstance(value, Real):
        raise UserError(f"An accuracy is of the type {type(value).__name__}: give one number.")
    if not 0 < value < 1:
        raise UserError(f"An accuracy is {value:g}: give fractions between 0 and 1, whose logits are finite.")
    return math.log(value / (1 - value))
