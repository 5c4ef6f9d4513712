"""Values of single images summed up: a mean or a share, with its 95 % interval."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_robust.metrics.intervals import NORMAL, wilson


@dataclass(frozen=True)
class Estimate:
    """What some images say of all such images.

    Attributes:
        value: a mean or a share; NaN where there is no image.
        interval: 95 %; None of fewer than two images.
        count: of images.
    """

    value: float
    interval: tuple[float, float] | None
    count: int


def mean_of(values: Tensor) -> Estimate:
    """Return the mean of one value an image with Student's interval; values that are NaN are left out.

    Args:
        values: ``[N]``.

    Example:
        >>> import torch
        >>> found = mean_of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> found.value, [round(end, 2) for end in found.interval]
        (2.5, [0.45, 4.55])
    """
    kept = values.double()
    kept = kept[~kept.isnan()]
    count = len(kept)
    if not count:
        return Estimate(math.nan, None, 0)
    mean = float(kept.mean())
    if count == 1 or not math.isfinite(mean):
        return Estimate(mean, None, count)
    reach = student(count - 1) * float(kept.std()) / math.sqrt(count)
    return Estimate(mean, (mean - reach, mean + reach), count)


def share_of(truths: Tensor) -> Estimate:
    """Return the share of true ones among ``[N]`` bool with Wilson's interval.

    Example:
        >>> import torch
        >>> [round(end, 3) for end in share_of(torch.tensor([True, False])).interval]
        [0.095, 0.905]
    """
    count, right = len(truths), int(truths.sum())
    return Estimate(right / count if count else math.nan, wilson(right, count), count)


def student(freedom: int) -> float:
    """Return the 97.5 % point of Student's t, to 0.001 from 3 degrees of freedom (Abramowitz & Stegun 26.7.5)."""
    if freedom <= 2:
        return {1: 12.706204736, 2: 4.302652730}[freedom]
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def rank_correlation(one: Tensor, other: Tensor) -> Estimate:
    """Return Spearman's rank correlation of values ``[N]`` with others, with the interval of Fieller et al. (1957).

    Example:
        >>> import torch
        >>> found = rank_correlation(torch.arange(9.0), torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 8, 7]))
        >>> round(found.value, 3), [round(end, 2) for end in found.interval]
        (0.983, [0.92, 1.0])
    """
    count = len(one)
    if count < 2:
        return Estimate(math.nan, None, count)
    value = float((centred_ranks(one[None]) * centred_ranks(other[None])).sum())
    if count < 4 or not abs(value) < 1:  # Also where one of the two is constant.
        return Estimate(value, None, count)
    reach, middle = NORMAL * math.sqrt(1.06 / (count - 3)), math.atanh(value)
    return Estimate(value, (math.tanh(middle - reach), math.tanh(middle + reach)), count)


def centred_ranks(values: Tensor) -> Tensor:
    """Return average ranks of each row, centred and of unit length; NaN for a constant row."""
    ordered = values.sort(1).values.contiguous()
    low = torch.searchsorted(ordered, values.contiguous(), side="left")
    high = torch.searchsorted(ordered, values.contiguous(), side="right")
    ranks: Tensor = (low + high - 1).double() / 2
    ranks = ranks - ranks.mean(1, keepdim=True)
    return ranks / ranks.square().sum(1, keepdim=True).sqrt()
