"""How often 95 % intervals hold the truth: exactly for fractions, by simulation for the others.

The truth of a simulated measure is its mean over many sets of the same size, as an interval says how far the same
measure may be off with other images of that number.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import exp, lgamma, log

import numpy as np
import torch
from tqdm import tqdm

from lit_robust.core.seeds import stream_seed
from lit_robust.metrics.calibration import (
    area_under_response_rate_accuracy,
    expected_calibration_error,
    rms_calibration_error,
)
from lit_robust.metrics.error_consistency import error_consistency
from lit_robust.metrics.intervals import Draws, paired_interval, spread, wilson
from lit_robust.metrics.ranking import area_under_roc, average_precision, false_positive_rate
from lit_robust.metrics.resampling import calibration_draws, consistency_draws, corruption_draws, ranking_draws

RANKINGS = {"aupr": average_precision, "auroc": area_under_roc, "fpr95": false_positive_rate}
CALIBRATIONS = {
    "rms_calibration_error": rms_calibration_error,
    "ece": expected_calibration_error,
    "aurra": area_under_response_rate_accuracy,
}
CELLS = 15
KAPPA = ((0.15, 0.1), (0.15, 0.6))  # Shares of trials: both wrong, one alone, the other alone, both right.
TRUTHS = 2000  # Sets whose mean is the truth.
Found = tuple[Mapping[str, float], Mapping[str, Draws]]
World = Callable[[np.random.Generator, str, int], Found]
"""Draws a set and returns its measures, and bootstrap draws of them, as many as asked for."""


def wilson_coverage(share: float, count: int) -> float:
    """Return how probable it is that Wilson's interval holds the true share, in closed form.

    Args:
        share: of images that are right, within (0, 1).
        count: of images.
    """
    held = 0.0
    for right in range(count + 1):
        low, high = wilson(right, count) or (0.0, 1.0)
        if low <= share <= high:
            ways = lgamma(count + 1) - lgamma(right + 1) - lgamma(count - right + 1)
            held += exp(ways + right * log(share) + (count - right) * log(1 - share))
    return held


def paired_coverage(gained: float, lost: float, count: int, repeats: int, seed: int) -> float:
    """Return how often the interval of a paired difference holds the true one.

    Args:
        gained: probability that the second network alone is right.
        lost: that the first one alone is.
        count: of images.
        repeats: of the simulation.
        seed: of it.
    """
    random = np.random.default_rng(stream_seed(seed, "coverage of a paired difference", count))
    drawn = random.multinomial(count, (gained, lost, 1 - gained - lost), repeats).tolist()
    ends = [paired_interval(more, fewer, count) for more, fewer, _ in drawn]
    return sum(low <= gained - lost <= high for low, high in ends) / repeats


def ranking(count: int, random: np.random.Generator, name: str, draws: int) -> Found:
    """Draw scores of two normal distributions a standard deviation apart, a fifth of them positives."""
    is_positive = np.arange(count) < count // 5
    scores, positive = torch.from_numpy(random.normal(is_positive * 1.0, 1.0)), torch.from_numpy(is_positive)
    found = {key: float(measure(scores, positive)) for key, measure in RANKINGS.items()}
    return found, ranking_draws(scores, positive, name, draws) if draws else {}


def calibration(count: int, gap: float, random: np.random.Generator, name: str, draws: int) -> Found:
    """Draw confidences from 0.5 to 1 of a network that is right that much less often."""
    confidence = random.random(count) / 2 + 0.5
    drawn = torch.from_numpy(confidence), torch.from_numpy(random.random(count) < confidence - gap)
    found = {key: float(measure(*drawn)) for key, measure in CALIBRATIONS.items()}
    return found, calibration_draws(*drawn, name, draws) if draws else {}


def corruptions(count: int, random: np.random.Generator, name: str, draws: int) -> Found:
    """Draw images of which some are hard under every corruption; the mean of errors in units of a baseline's."""
    ease = random.normal(size=(count, 1)) + random.normal(size=(count, CELLS))
    right = torch.from_numpy((ease > np.linspace(-1, 1, CELLS)).astype(np.int64))

    def mean_error(accuracies: list[float]) -> dict[str, float]:
        return {"mce": float(np.mean((1 - np.array(accuracies)) / np.linspace(0.5, 0.9, CELLS)))}

    found = mean_error(right.double().mean(0).tolist())
    return found, corruption_draws(right, torch.ones_like(right), name, mean_error, draws) if draws else {}


def consistency(count: int, random: np.random.Generator, name: str, draws: int) -> Found:
    """Draw trials of two observers."""
    table = torch.from_numpy(random.multinomial(count, np.reshape(KAPPA, -1)).reshape(2, 2))
    drawn = {"error_consistency": consistency_draws(table, name, draws)} if draws else {}
    return {"error_consistency": float(error_consistency(table))}, drawn


WORLDS: Mapping[tuple[str, int], World] = {
    **{("a fifth are positives", n): partial(ranking, n) for n in (200, 2000)},
    **{(f"right {gap:g} less often than sure", n): partial(calibration, n, gap) for gap in (0.0, 0.05, 0.2)
       for n in (500, 2000)},
    **{(f"{CELLS} corruptions", n): partial(corruptions, n) for n in (100, 1000)},
    **{("kappa 0.37", n): partial(consistency, n) for n in (160, 1280)},
}  # fmt: skip
BOUNDS = {"mce": (0.0, np.inf), "error_consistency": (-1.0, 1.0)}


def world_coverage(world: World, name: str, repeats: int, draws: int, seed: int) -> dict[str, float]:
    """Return by measure how often the bootstrap's interval holds the truth.

    Args:
        world: draws sets.
        name: of it; the same gives the same sets.
        repeats: sets whose intervals are counted.
        draws: of the bootstrap, each set.
        seed: of all.
    """
    random = np.random.default_rng(stream_seed(seed, f"coverage of {name}"))
    truths = [world(random, "", 0)[0] for _ in range(TRUTHS)]
    truth = {key: float(np.mean([one[key] for one in truths])) for key in truths[0]}
    held = dict.fromkeys(truth, 0)
    for number in range(repeats):
        found, drawn = world(random, f"{name}, set {number} of seed {seed}", draws)
        for key in held:
            ends = spread(found[key], drawn[key], BOUNDS.get(key, (0.0, 1.0)))
            held[key] += int(ends is not None and ends[0] <= truth[key] <= ends[1])
    return {key: count / repeats for key, count in held.items()}


def coverage_table(repeats: int, draws: int, seed: int) -> str:
    """Return in Markdown how often intervals hold the truth, the simulated shares with their own Wilson interval."""
    lines = ["| measure | of | images | intervals that hold the truth, % |", "| --- | --- | ---: | ---: |"]
    lines += [_line("fraction, Wilson", f"truth {p:g}", n, f"{100 * wilson_coverage(p, n):.1f}, exact")
              for p in (0.02, 0.2, 0.5) for n in (50, 500, 5000)]  # fmt: skip
    lines += [
        _line("paired difference", f"gained {a:g}, lost {b:g}", n, _share(paired_coverage(a, b, n, times, seed), times))
        for a, b in ((0.05, 0.02), (0.2, 0.1))
        for n in (50, 500)
        for times in [25 * repeats]
    ]
    return "\n".join([*lines, *_simulated(repeats, draws, seed)])


def _simulated(repeats: int, draws: int, seed: int) -> Iterator[str]:
    for (words, count), world in tqdm(WORLDS.items(), desc="simulating", unit="set of measures"):
        found = world_coverage(world, f"{words}, {count}", repeats, draws, seed)
        yield from (_line(key, words, count, _share(held, repeats)) for key, held in found.items())


def _share(held: float, repeats: int) -> str:
    low, high = wilson(round(held * repeats), repeats) or (0.0, 1.0)
    return f"{100 * held:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _line(measure: str, words: str, count: int, share: str) -> str:
    return f"| {measure.replace('_', ' ')} | {words} | {count:,} | {share} |"
