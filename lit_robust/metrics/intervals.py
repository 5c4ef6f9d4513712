"""95 % intervals: Wilson's for fractions of images, Student's for means, the bootstrap's for other measures.

Bootstrap draws are seeded by name and take samples in an order of their own values, so that an interval does not
depend on batches, ranks or the order of reading.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import atanh, isfinite, nan, sqrt, tanh

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]
from torch import Tensor

from lit_robust.core.seeds import stream_seed

Interval = tuple[float, float]
Draws = NDArray[np.float64]
DRAWS = 1000
WILSON, BOOTSTRAP = "Wilson", f"bootstrap, {DRAWS} draws"  # What a protocol says of an interval.
NORMAL = 1.959963984540054  # The 97.5th percentile of the normal distribution.
BLOCK = 4_000_000  # Weights at once, 32 MB.


def wilson(right: float, count: int) -> Interval | None:
    """Return Wilson's score interval (1927, without continuity correction) of a fraction of independent images.

    Args:
        right: how many of them are right, from 0 to ``count``.
        count: of how many; None is returned for 0.

    Example:
        >>> low, high = wilson(133, 200)
        >>> round(low, 4), round(high, 4)
        (0.597, 0.7268)
    """
    if count < 1:
        return None
    share, square = right / count, NORMAL**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL / (1 + square / count) * sqrt(share * (1 - share) / count + square / (4 * count**2))
    # At the ends the bound is exact, and rounding would miss it.
    return (0.0 if right == 0 else centre - half), (1.0 if right == count else centre + half)


@dataclass(frozen=True)
class Estimate:
    """What some images say of all such images.

    Attributes:
        value: a mean or a share; NaN where there is no image.
        interval: 95 %; None of fewer than two images.
        count: of images.
    """

    value: float
    interval: Interval | None
    count: int


def share_of(truths: Tensor) -> Estimate:
    """Return the share of true ones among ``[N]`` bool with Wilson's interval.

    Example:
        >>> import torch
        >>> [round(end, 3) for end in share_of(torch.tensor([True, False])).interval]
        [0.095, 0.905]
    """
    count, right = len(truths), int(truths.sum())
    return Estimate(right / count if count else nan, wilson(right, count), count)


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
        return Estimate(nan, None, 0)
    mean = float(kept.mean())
    if count == 1 or not isfinite(mean):
        return Estimate(mean, None, count)
    reach = float(stdtrit(count - 1, 0.975)) * float(kept.std()) / sqrt(count)
    return Estimate(mean, (mean - reach, mean + reach), count)


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
        return Estimate(nan, None, count)
    value = float((centred_ranks(one[None]) * centred_ranks(other[None])).sum())
    if count < 4 or not abs(value) < 1:  # Also where one of the two is constant.
        return Estimate(value, None, count)
    reach, middle = NORMAL * sqrt(1.06 / (count - 3)), atanh(value)
    return Estimate(value, (tanh(middle - reach), tanh(middle + reach)), count)


def centred_ranks(values: Tensor) -> Tensor:
    """Return average ranks of each row, centred and of unit length; NaN for a constant row."""
    ordered = values.sort(1).values.contiguous()
    low = torch.searchsorted(ordered, values.contiguous(), side="left")
    high = torch.searchsorted(ordered, values.contiguous(), side="right")
    ranks: Tensor = (low + high - 1).double() / 2
    ranks = ranks - ranks.mean(1, keepdim=True)
    return ranks / ranks.square().sum(1, keepdim=True).sqrt()


def paired_interval(gained: int, lost: int, count: int) -> Interval:
    """Return the interval of the difference of two fractions of the same images (Agresti and Min 2005, Wald + 2).

    Half an image is added to each of the four cells of the table of both answers, which makes the interval hold in
    small sets and at its ends.

    Args:
        gained: images that the second network alone gets right.
        lost: images that the first one alone gets right.
        count: of all images, at least 1.

    Returns:
        Bounds of ``(gained - lost) / count``, within -1 and 1.

    Example:
        >>> low, high = paired_interval(30, 10, 200)
        >>> round(low, 4), round(high, 4)
        (0.0384, 0.1596)
    """
    more, fewer, base = gained + 0.5, lost + 0.5, count + 2
    centre = (more - fewer) / base
    half = NORMAL * sqrt(more + fewer - (more - fewer) ** 2 / base) / base
    return max(centre - half, -1.0), min(centre + half, 1.0)


def resamples(count: int, name: str, draws: int = DRAWS, rows: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Yield how often each of ``count`` samples comes in draws with replacement, ``[rows, count]`` a block.

    Args:
        count: of samples, at least 1.
        name: what the draws are for; the same name gives the same draws.
        draws: how many, over all blocks.
        rows: draws a block; null for as many as fit. The draws do not depend on it.
    """
    random = np.random.default_rng(stream_seed(0, f"bootstrap of {name}"))
    rows = rows or block_rows(count)
    for start in range(0, draws, rows):
        some = min(rows, draws - start)
        chosen = random.integers(0, count, (some, count)) + count * np.arange(some)[:, None]
        yield np.bincount(chosen.reshape(-1), minlength=some * count).reshape(some, count)


def block_rows(count: int) -> int:
    """Return how many draws of so many samples fit into a block."""
    return max(1, BLOCK // count)


def spread(value: float, draws: Draws, bounds: Interval = (0.0, 1.0)) -> Interval | None:
    """Return the 95 % interval that bootstrap draws give around a value.

    Their 2.5th and 97.5th percentile, shifted so that their median is the value: a calibration error is biased upward
    in few samples, and more so in draws from these, whose percentiles may not hold the value at all. So an interval
    says how far the same measure may be off with other images of the same number.

    Args:
        value: the measure of all samples.
        draws: of each draw; what is not a number is left out.
        bounds: what the measure cannot leave.

    Returns:
        None where the value is undefined, or half of the draws; and where all draws are the same, as of images that are
        all wrong, which say nothing of other images.
    """
    defined = draws[np.isfinite(draws)]
    if not isfinite(value) or 2 * len(defined) < max(len(draws), 1) or np.ptp(defined) == 0:
        return None
    low, middle, high = (float(end) for end in np.percentile(defined, (2.5, 50, 97.5)))
    return max(bounds[0], value - (middle - low)), min(bounds[1], value + (high - middle))
