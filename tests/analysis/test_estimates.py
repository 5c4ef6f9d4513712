"""Intervals against SciPy."""

import math

import pytest
import torch
from scipy import stats

from lit_robust.analysis.estimates import mean_of, rank_correlation, share_of, student


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 1000])
def test_students_t(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_the_mean_and_its_interval():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    found = mean_of(torch.cat([values, torch.tensor([math.nan])]))
    low, high = stats.t.interval(0.95, 19, values.double().mean(), stats.sem(values.double()))
    assert found.count == 20
    assert found.interval == pytest.approx((low, high), rel=1e-4)
    assert mean_of(values[:1]).interval is None
    assert math.isnan(mean_of(values[:0]).value)


@pytest.mark.parametrize(("right", "of"), [(0, 5), (5, 5), (3, 7), (50, 64)])
def test_wilsons_interval(right, of):
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
