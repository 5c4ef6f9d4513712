"""Exact quantiles against sorting."""

import pytest
import torch

from lit_robust.analysis.quantiles import BINS, RISING, UpperQuantile, leading


def by_sorting(values, share):
    return values.sort(1, descending=True).values[:, int(share * values.shape[1])]


def streamed(parts, share):
    quantile = UpperQuantile(len(parts[0]), share)
    for part in parts:
        quantile.count(part[None])
    quantile.settle()
    for part in reversed(parts):
        quantile.keep(part[None])
    return quantile.thresholds()


@pytest.mark.parametrize("share", [0.005, 0.03, 0.5, 0.999])
def test_quantiles_are_those_of_sorting(share):
    torch.manual_seed(0)
    values = torch.randn(7, 3001)
    values[1].relu_()
    values[2].mul_(1e-20)
    values[3] = values[3].round()  # Ties.
    values[4] = 0
    values[5].abs_().neg_()
    found = streamed(values.split([1000, 1, 2000], 1), share)
    assert torch.equal(found, by_sorting(values, share))
    assert ((values > found[:, None]).sum(1) <= int(share * 3001)).all()


def test_codes_are_ordered_as_values():
    values = torch.tensor([-torch.inf, -3e38, -2.0, -1e-42, -0.0, 0.0, 1e-42, 1.0, 1.2, torch.inf])
    places = RISING.argsort()[leading(values).long()]
    assert (places.diff() >= 0).all()
    assert (places.diff() == 0).tolist() == [False, False, False, True, False, True, False, False, False]
    assert RISING.sort().values.equal(torch.arange(BINS))


def test_zeros_of_both_signs_are_not_kept():
    values = torch.zeros(2, 1000)
    values[0, :500] = -0.0
    values[1, :3] = 1.0
    found = UpperQuantile(2, 0.01)
    found.count(values[None])
    found.settle()
    found.keep(values[None])
    assert found.thresholds().tolist() == [0.0, 0.0]
    assert sum(len(value) for _, value in found._kept) == 0


def test_parts_of_several_processes_are_one():
    torch.manual_seed(0)
    values = torch.randn(5, 1000)
    halves = [UpperQuantile(5, 0.01), UpperQuantile(5, 0.01)]
    pieces = values.split(500, 1)
    for half, part in zip(halves, pieces, strict=True):
        half.count(part[None])
    halves[0].merge(halves[1])
    halves[1].counts, halves[1].total = halves[0].counts, halves[0].total
    for half, part in zip(halves, pieces, strict=True):
        half.settle()
        half.keep(part[None])
    halves[0].merge(halves[1])
    assert torch.equal(halves[0].thresholds(), by_sorting(values, 0.01))
