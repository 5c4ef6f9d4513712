"""95 % intervals: Wilson's for fractions of images, the bootstrap's for measures that are no fraction.

Bootstrap draws are seeded by name and take samples in an order of their own values, so that an interval does not
depend on batches, ranks or the order of reading.
"""

from collections.abc import Iterator
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

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
        None where the value is undefined, or half of the draws.
    """
    defined = draws[np.isfinite(draws)]
    if not isfinite(value) or 2 * len(defined) < max(len(draws), 1):
        return None
    low, middle, high = (float(end) for end in np.percentile(defined, (2.5, 50, 97.5)))
    return max(bounds[0], value - (middle - low)), min(bounds[1], value + (high - middle))
