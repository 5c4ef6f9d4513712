"""Areas under curves, held to scikit-learn's on scores with and without ties."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from lit_robust.metrics import area_under_roc, average_precision, false_positive_rate, precision_recall


def samples(seed, count=500, levels=None):
    generator = np.random.default_rng(seed)
    positive = generator.random(count) < 0.2
    scores = generator.normal(size=count) + positive
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), positive


CASES = [(seed, levels) for seed in range(4) for levels in (None, 20, 2, 0.3)]


@pytest.mark.parametrize(("seed", "levels"), CASES)
def test_areas_are_scikit_learns(seed, levels):
    scores, positive = samples(seed, levels=levels)
    given = torch.tensor(scores), torch.tensor(positive)
    # Both in float64, from the same whole numbers.
    assert float(average_precision(*given)) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
    assert float(area_under_roc(*given)) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(positive, scores)
    own = precision_recall(*given)
    np.testing.assert_allclose(own[0], precision[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(own[1], recall[:-1][::-1], atol=1e-12)


@pytest.mark.parametrize(("seed", "levels"), CASES)
@pytest.mark.parametrize("wanted", [0.95, 0.5])
def test_false_positive_rate_by_brute_force(seed, levels, wanted):
    scores, positive = samples(seed, count=123, levels=levels)
    candidates = []
    for threshold in sorted(set(scores.tolist())):
        taken = scores >= threshold
        recall, rate = taken[positive].mean(), taken[~positive].mean()
        # At a recall of 1 only the highest threshold stands for itself; else the lowest one does.
        candidates.append((abs(recall - wanted), recall == 1, rate if recall == 1 else threshold, rate))
    closest = min(distance for distance, *_ in candidates)
    best = [rate for distance, *_, rate in candidates if abs(distance - closest) < 1e-12]
    found = float(false_positive_rate(torch.tensor(scores), torch.tensor(positive), wanted))
    complete = all(whole for distance, whole, *_ in candidates if abs(distance - closest) < 1e-12)
    assert found == pytest.approx(min(best) if complete else best[0], abs=1e-12)


def test_closest_recall_is_not_the_first_that_reaches_it():
    # Recalls 1/3, 2/3, 1: the closest to 0.8 is 2/3, though only 1 reaches it.
    scores, positive = torch.tensor([5.0, 4.0, 3.0, 3.0]), torch.tensor([True, True, False, True])
    assert float(false_positive_rate(scores, positive, 0.8)) == 0
    assert float(false_positive_rate(scores, positive, 0.95)) == 1


def test_chance_is_the_fraction_of_positives():
    generator = torch.Generator().manual_seed(0)
    positive = torch.arange(12_000) < 2_000
    constant, random = torch.zeros(12_000), torch.rand(12_000, generator=generator)
    assert float(average_precision(constant, positive)) == pytest.approx(2_000 / 12_000, abs=1e-15)
    assert float(area_under_roc(constant, positive)) == 0.5
    # Standard deviation of a random ranking's average precision here is about 0.003.
    assert float(average_precision(random, positive)) == pytest.approx(1 / 6, abs=0.01)
    assert float(average_precision(positive.float(), positive)) == 1
    assert float(area_under_roc(-positive.float(), positive)) == 0


@pytest.mark.parametrize("positive", [[True, True], [False, False], []])
def test_undefined_without_both_kinds(positive):
    scores, kinds = torch.arange(float(len(positive))), torch.tensor(positive, dtype=torch.bool)
    assert average_precision(scores, kinds).isnan()
    assert area_under_roc(scores, kinds).isnan()
    assert false_positive_rate(scores, kinds).isnan()


def test_no_order_of_samples_matters():
    scores, positive = (torch.tensor(part) for part in samples(9, levels=2))
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    for measure in (average_precision, area_under_roc, false_positive_rate):
        assert measure(scores, positive) == measure(scores[order], positive[order])
