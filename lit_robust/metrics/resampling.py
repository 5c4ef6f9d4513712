"""Bootstrap draws of measures that are not fractions: areas under curves, calibration, means over corruptions, kappa.

Each gives, for samples that come once each, what the measure's own function gives; see ``intervals`` for the seeds.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_robust.core.seeds import stream_seed
from lit_robust.metrics.calibration import BIN_SIZE, ECE_BINS
from lit_robust.metrics.error_consistency import error_consistency
from lit_robust.metrics.intervals import DRAWS, Draws, block_rows, resamples

Whole = NDArray[np.int64]


def ranking_draws(scores: Tensor, positive: Tensor, name: str, draws: int = DRAWS) -> dict[str, Draws]:
    """Return draws of ``aupr``, ``auroc`` and ``fpr95``; empty where a kind of sample is lacking.

    Positives and negatives are drawn apart, as their numbers are the test set's and not chance's.

    Args:
        scores: ``[N]`` finite, high where a sample is held for positive.
        positive: ``[N]`` bool.
        name: of the draws.
        draws: how many.
    """
    order = np.lexsort((positive.numpy(), -scores.double().numpy()))
    values, is_positive = scores.double().numpy()[order], positive.numpy()[order]
    places = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    if not len(places[0]) or not len(places[1]):
        return {}
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    rows = block_rows(len(values))
    kinds = (resamples(len(places[kind]), f"{name}, kind {kind}", draws, rows) for kind in (0, 1))
    parts = [
        _areas(*(_counts(weights, of, ends) for weights, of in zip(pair, places, strict=True)))
        for pair in zip(*kinds, strict=True)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _counts(weights: Whole, places: Whole, ends: Whole) -> Whole:
    """Return how many of one kind stand at or above each threshold, ``[rows, thresholds]``."""
    before = np.searchsorted(places, ends, side="right")
    sums: Whole = np.pad(weights.cumsum(1), ((0, 0), (1, 0)))[:, before]
    return sums


def _areas(true: Whole, false: Whole) -> dict[str, Draws]:
    positives, negatives = true[:, -1:], false[:, -1:]
    precision = true / np.maximum(true + false, 1)
    new_true, new_false = np.diff(true, axis=1, prepend=0), np.diff(false, axis=1, prepend=0)
    distance = np.abs(true / positives - 0.95)
    distance[np.cumsum(true == positives, axis=1) > 1] = np.inf  # Beyond the first threshold that takes all.
    nearest = true.shape[1] - 1 - distance[:, ::-1].argmin(1)
    return {
        "aupr": (precision * new_true).sum(1) / positives[:, 0],
        "auroc": ((true - new_true / 2) * new_false).sum(1) / (positives * negatives)[:, 0],
        "fpr95": np.take_along_axis(false, nearest[:, None], 1)[:, 0] / negatives[:, 0],
    }


def calibration_draws(confidence: Tensor, correct: Tensor, name: str, draws: int = DRAWS) -> dict[str, Draws]:
    """Return draws of the four measures of ``Calibration``; empty without samples.

    Args:
        confidence: ``[N]`` in [0, 1].
        correct: ``[N]`` bool.
        name: of the draws.
        draws: how many.
    """
    order = np.lexsort((correct.numpy(), confidence.double().numpy()))
    values, right = confidence.double().numpy()[order], correct.numpy()[order].astype(np.float64)
    if not len(values):
        return {}
    starts = np.flatnonzero(np.insert(values[1:] != values[:-1], 0, True))
    place = (np.searchsorted(np.linspace(0, 1, ECE_BINS + 1), values[starts]) - 1).clip(0, ECE_BINS - 1)
    found = [
        _calibration(weights, right, values[starts], starts, place)
        for block in resamples(len(values), name, draws)
        for weights in block
    ]
    return {key: np.array([one[key] for one in found]) for key in found[0]}


def _calibration(weights: Whole, right: Draws, values: Draws, starts: Whole, place: Whole) -> dict[str, float]:
    """Return the measures of weighted samples, of which equal confidences share how right they are."""
    counts = np.add.reduceat(weights, starts)
    is_there = counts > 0
    counts, values, place = counts[is_there], values[is_there], place[is_there]
    rights = np.add.reduceat(weights * right, starts)[is_there]
    total = int(counts.sum())
    gaps = counts * values - rights
    ends = np.append(0, counts.cumsum())
    edges = np.append(np.arange(max(1, total // BIN_SIZE)) * BIN_SIZE, total)
    # The sum of gaps up to a sample is linear within equal confidences.
    squares = np.diff(np.interp(edges, ends, np.append(0, gaps.cumsum()))) ** 2 / np.diff(edges) / total
    falling = np.repeat((rights / counts)[::-1], counts[::-1])
    return {
        "rms_calibration_error": float(np.sqrt(squares.sum())),
        "rms_calibration_error_published": float(np.sqrt(squares[:-1].sum())) if len(squares) > 1 else np.nan,
        "aurra": float((falling.cumsum() / np.arange(1, total + 1)).mean()),
        "ece": float(np.abs(np.bincount(place, weights=gaps)).sum() / total),
    }


def corruption_draws(
    right: Tensor, seen: Tensor, name: str, summarise: Callable[[list[float]], dict[str, float]], draws: int = DRAWS
) -> dict[str, Draws]:
    """Return draws of what follows from the accuracies of cells: whole images are drawn, with all of their cells.

    One image under 75 corruptions is not 75 independent images.

    Args:
        right: whole numbers ``[images, cells]``, how often each image was classified right in each cell.
        seen: how often it was seen there.
        name: of the draws.
        summarise: takes the accuracies of the cells, NaN where no image of a cell was drawn, and gives measures.
        draws: how many.
    """
    kept = seen.any(1)
    sides = right[kept].float().numpy(), seen[kept].float().numpy()
    if not len(sides[0]):
        return {}
    found: list[dict[str, float]] = []
    for weights in resamples(len(sides[0]), name, draws):
        # Whole numbers below 2 ** 24, so that the sums are exact.
        right_of, seen_of = (weights.astype(np.float32) @ side for side in sides)
        with np.errstate(invalid="ignore"):
            found += [summarise(row) for row in (right_of.astype(np.float64) / seen_of).tolist()]
    return {
        key: np.array([one.get(key, np.nan) for one in found]) for key in dict.fromkeys(k for one in found for k in one)
    }


def consistency_draws(counts: Tensor, name: str, draws: int = DRAWS) -> Draws:
    """Return draws of Cohen's kappa from a table of trials, int64 ``[2, 2]``; NaN where chance alone agrees."""
    random = np.random.default_rng(stream_seed(0, f"bootstrap of {name}"))
    total = int(counts.sum())
    if not total:
        return np.full(draws, np.nan)
    tables = random.multinomial(total, counts.double().numpy().reshape(-1) / total, draws)
    found: Draws = error_consistency(torch.from_numpy(tables.reshape(draws, 2, 2))).numpy()
    return found
