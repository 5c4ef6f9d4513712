"""Intervals against closed forms and SciPy; draws against the measures themselves; coverage by simulation."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import binomtest

from lit_robust.metrics import area_under_roc, average_precision, error_consistency, false_positive_rate
from lit_robust.metrics.calibration import Calibration
from lit_robust.metrics.intervals import (
    NORMAL,
    mean_of,
    paired_interval,
    rank_correlation,
    resamples,
    share_of,
    spread,
    wilson,
)
from lit_robust.metrics.resampling import calibration_draws, consistency_draws, corruption_draws, ranking_draws


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (133, 200), (0, 50_000), (49_999, 50_000), (74, 249)])
def test_wilson_is_scipys(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(right, count)[0] <= right / count <= wilson(right, count)[1]
    assert wilson(0, 0) is None


@pytest.mark.parametrize(("gained", "lost", "count"), [(10, 0, 100), (3, 17, 40), (0, 0, 25), (250, 300, 2000)])
def test_a_paired_interval_is_the_normal_one_of_two_more_images(gained, lost, count):
    """Agresti and Min 2005: half an image more is gained, half is lost, and one stays."""
    weights = np.array([gained + 0.5, lost + 0.5, count - gained - lost + 1])
    steps = np.array([1, -1, 0])
    mean = np.average(steps, weights=weights)
    half = NORMAL * np.sqrt(np.average((steps - mean) ** 2, weights=weights) / (count + 2))
    assert paired_interval(gained, lost, count) == pytest.approx((mean - half, mean + half), abs=1e-12)
    assert paired_interval(1, 0, 1)[1] == 1.0
    assert paired_interval(0, 1, 1)[0] == -1.0


def test_draws_are_multinomial_named_and_of_any_blocks():
    (whole,) = resamples(20, "a", 600)
    assert (whole.sum(1) == 20).all()
    assert np.array_equal(whole, np.concatenate(list(resamples(20, "a", 600, rows=7))))
    assert not np.array_equal(whole, next(resamples(20, "b", 600)))
    assert whole.var() == pytest.approx(1 - 1 / 20, rel=0.05)


def test_a_mean_has_the_interval_of_its_standard_error():
    values = np.random.default_rng(0).random(400)
    (weights,) = resamples(400, "mean", 4000)
    low, high = spread(values.mean(), weights @ values / 400)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_an_interval_holds_its_value_and_its_bounds():
    assert spread(0.5, np.array([0.6, 0.7, 0.8])) == pytest.approx((0.405, 0.595))
    assert spread(0.99, np.array([0.9, 0.95, 1.0]))[1] == 1.0
    assert spread(float("nan"), np.ones(3)) is None
    assert spread(0.5, np.array([np.nan, np.nan, 0.5])) is None


def scored(count=60, seed=1):
    random = torch.Generator().manual_seed(seed)
    scores = (torch.rand(count, generator=random) * 12).round() / 12  # Many ties.
    return scores, torch.rand(count, generator=random) < 0.3 + 0.4 * scores


@pytest.fixture
def each_once(monkeypatch):
    """Draws in which every sample comes once."""
    from lit_robust.metrics import resampling

    monkeypatch.setattr(resampling, "resamples", lambda count, *_: iter([np.ones((1, count), dtype=np.int64)]))


def test_each_sample_once_gives_the_measure(each_once):
    scores, positive = scored()
    found = ranking_draws(scores, positive, "x")
    assert found["aupr"] == pytest.approx(float(average_precision(scores, positive)), abs=1e-12)
    assert found["auroc"] == pytest.approx(float(area_under_roc(scores, positive)), abs=1e-12)
    assert found["fpr95"] == pytest.approx(float(false_positive_rate(scores, positive)), abs=1e-12)
    for count in (30, 100, 350):
        confidence, correct = scored(count)
        metric = Calibration()
        metric.confidence, metric.correct = [confidence], [correct.float()]
        draws = calibration_draws(confidence, correct, "x")
        for name, value in metric.compute().items():
            assert draws[name][0] == pytest.approx(float(value), abs=1e-12, nan_ok=True), (name, count)
    # Of the first two of 15 bins one is too sure and one not sure enough: together they would even out.
    draws = calibration_draws(torch.tensor([0.03, 0.1], dtype=torch.float64), torch.tensor([True, False]), "x")
    assert draws["ece"][0] == pytest.approx((0.97 + 0.1) / 2, abs=1e-12)


def test_draws_of_a_name_are_its_own():
    confidence, correct = scored(50)
    one, other = (calibration_draws(confidence, correct, name, 20)["ece"] for name in ("x", "y"))
    assert not np.array_equal(one, other)


def test_weights_are_repeated_samples(monkeypatch):
    """What a draw gives is the measure of the samples, written out as often as they were drawn."""
    from lit_robust.metrics import resampling

    weights = np.random.default_rng(3).integers(0, 3, (1, 150))
    monkeypatch.setattr(resampling, "resamples", lambda count, *_: iter([weights[:, :count]]))
    confidence, correct = scored(150)
    order = np.lexsort((correct.numpy(), confidence.double().numpy()))
    times = torch.from_numpy(weights[0])
    metric = Calibration()
    metric.confidence = [confidence[order].repeat_interleave(times)]
    metric.correct = [correct[order].float().repeat_interleave(times)]
    draws = calibration_draws(confidence, correct, "x")
    for name, value in metric.compute().items():
        assert draws[name][0] == pytest.approx(float(value), abs=1e-12, nan_ok=True), name


def test_the_order_of_samples_changes_nothing():
    scores, positive = scored()
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for function in (ranking_draws, calibration_draws):
        one, other = function(scores, positive, "x", 50), function(scores[mixed], positive[mixed], "x", 50)
        assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
    assert ranking_draws(scores, torch.ones(60, dtype=torch.bool), "x") == {}
    assert calibration_draws(torch.zeros(0), torch.zeros(0, dtype=torch.bool), "x") == {}


def test_images_are_drawn_with_all_of_their_cells():
    """Two cells of the same images vary as one does, not as two independent ones."""
    random = torch.Generator().manual_seed(0)
    column = (torch.rand(400, 1, generator=random) < 0.6).long()
    right, seen = column.repeat(1, 2), torch.ones(400, 2, dtype=torch.int64)

    def mean(cells):
        return {"mean": sum(cells) / len(cells)}

    alike = corruption_draws(right, seen, "x", mean)["mean"]
    apart = corruption_draws(torch.cat([column, column[torch.randperm(400, generator=random)]], 1), seen, "x", mean)[
        "mean"
    ]
    assert alike.std() == pytest.approx((0.6 * 0.4 / 400) ** 0.5, rel=0.1)
    assert apart.std() == pytest.approx((0.6 * 0.4 / 800) ** 0.5, rel=0.1)


def test_kappas_draws_have_its_spread():
    """Fleiss, Cohen and Everitt 1969 give the standard error of kappa for large samples."""
    counts = torch.tensor([[200, 100], [100, 600]])
    table = counts.double().numpy() / 1000
    kappa = float(error_consistency(counts))
    rows, columns = table.sum(1), table.sum(0)
    expected = rows @ columns
    terms = sum(table[i, i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in range(2))
    terms += (1 - kappa) ** 2 * sum(
        table[i, j] * (columns[i] + rows[j]) ** 2 for i in range(2) for j in range(2) if i != j
    )
    error = ((terms - (kappa - expected * (1 - kappa)) ** 2) / ((1 - expected) ** 2 * 1000)) ** 0.5
    assert consistency_draws(counts, "x").std() == pytest.approx(error, rel=0.08)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth():
    """Of a binormal AUROC, whose truth is known, and of a calibration error, whose mean over many sets is."""
    random = np.random.default_rng(5)
    sets = 200

    def drawn():
        positive = random.random(160) < 0.5
        return torch.from_numpy(random.normal(positive * 1.0, 1.0)), torch.from_numpy(positive)

    held = 0
    for number in range(sets):
        scores, positive = drawn()
        draws = ranking_draws(scores, positive, str(number), 200)["auroc"]
        low, high = spread(float(area_under_roc(scores, positive)), draws)
        held += low <= 0.7602499 <= high  # The normal distribution function at 1 / sqrt(2).
    assert 0.90 <= held / sets <= 0.99

    def errors(count):
        confidence = random.random(count) * 0.5 + 0.5
        return torch.from_numpy(confidence), torch.from_numpy(random.random(count) < confidence - 0.2)

    def measured(confidence, correct):
        metric = Calibration()
        metric.confidence, metric.correct = [confidence], [correct.float()]
        return float(metric.compute()["rms_calibration_error"])

    truth = np.mean([measured(*errors(400)) for _ in range(400)])
    held = 0
    for number in range(sets):
        confidence, correct = errors(400)
        draws = calibration_draws(confidence, correct, str(number), 200)["rms_calibration_error"]
        low, high = spread(measured(confidence, correct), draws)
        held += low <= truth <= high
    assert 0.90 <= held / sets <= 0.99


def test_the_mean_and_its_interval():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    found = mean_of(torch.cat([values, torch.tensor([math.nan])]))
    low, high = stats.t.interval(0.95, 19, values.double().mean(), stats.sem(values.double()))
    assert found.count == 20
    assert found.interval == pytest.approx((low, high), rel=1e-9)
    assert mean_of(values[:1]).interval is None
    assert math.isnan(mean_of(values[:0]).value)


@pytest.mark.parametrize(("right", "of"), [(0, 5), (5, 5), (3, 7), (50, 64)])
def test_a_share_has_wilsons_interval(right, of):
    found = share_of(torch.arange(of) < right)
    expected = stats.binomtest(right, of).proportion_ci(0.95, "wilson")
    assert found.value == pytest.approx(right / of)
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_rank_correlation_and_its_interval():
    torch.manual_seed(0)
    one = torch.randn(60).mul(3).round()  # Ties.
    other = one + torch.randn(60)
    found = rank_correlation(one, other)
    assert found.value == pytest.approx(stats.spearmanr(one, other).statistic)
    reach = stats.norm.ppf(0.975) * math.sqrt(1.06 / 57)
    ends = [math.tanh(math.atanh(found.value) + sign * reach) for sign in (-1, 1)]
    assert found.interval == pytest.approx(ends)
    assert math.isnan(rank_correlation(one, torch.zeros(60)).value)
    assert rank_correlation(one, one).interval is None or rank_correlation(one, one).value == pytest.approx(1)
