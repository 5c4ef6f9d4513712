"""Inversion's numbers: closed forms of a linear representation, and of images made by hand."""

from dataclasses import replace

import pytest
import torch
from linear import Judge, linear, pictures

from lit_robust.analysis.ascent import Match, Settings, relative_distance
from lit_robust.analysis.inversion import (
    Inversions,
    Work,
    area_between,
    invert,
    measures,
    opinions,
    other_class,
    reach,
    recovery,
    start_invariance,
)
from lit_robust.core.errors import UserError

FINE = Settings(step_size=1e-3, steps=600)


def test_inversion_of_many_is_that_of_each(tmp_path):
    represent, _ = linear()
    targets, starts = pictures(5, 1), pictures(5, 0)
    few = Settings(step_size=0.01, steps=10)
    whole = invert(represent, targets, starts, few, Work(batch=5))
    parts = invert(represent, targets, starts, few, Work(batch=2, folder=tmp_path))
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 3
    assert (invert(represent, targets, starts, FINE).after < 1e-3).all()
    goals = represent(targets)
    torch.testing.assert_close(whole.before, relative_distance(represent(starts), goals).detach())
    assert Match(goals).name == "match"


def test_start_invariance_of_a_linear_representation_is_what_its_matrix_does_not_see():
    represent, rows = linear()
    targets = pictures(3, 1)
    first, second = (invert(represent, targets, pictures(3, seed), FINE) for seed in (0, 2))
    unseen = torch.eye(rows.shape[1]) - rows.T @ rows
    between = (first.starts - second.starts).flatten(1)
    expected = (between @ unseen).norm(dim=1) / between.norm(dim=1)
    torch.testing.assert_close(start_invariance(first, second), expected, rtol=0, atol=2e-2)
    with pytest.raises(UserError, match="different targets"):
        start_invariance(first, invert(represent, pictures(3, 5), pictures(3, 0), Settings(steps=0)))


def test_the_curve_within_distances_and_the_area_between_two():
    represent, rows = linear()
    targets, starts = pictures(4, 1), pictures(4, 0)
    grid = (0.01, 0.02, 0.04)
    found = reach(represent, targets, starts, {eps: Settings(eps=eps, step_size=eps / 50, steps=200) for eps in grid})
    goals = represent(targets).detach()
    away = ((targets - starts).flatten(1) @ rows.T).norm(dim=1)
    for eps in grid:
        torch.testing.assert_close(found[eps].after, (away - eps) / goals.norm(dim=1), rtol=0, atol=1e-3)
    low, high = torch.zeros(3, 4), torch.tensor([[0.0], [1.0], [1.0]]).expand(3, 4)
    estimate = area_between(grid, low, high)
    assert estimate.value == pytest.approx((0.5 * 0.01 + 0.02) / 0.03)
    assert estimate.count == 4


def test_numbers_beside_pictures():
    targets = torch.rand(3, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert recovery(targets, targets, 1 - targets).tolist() == [1.0] * 3
    assert recovery(1 - targets, targets, 1 - targets).tolist() == [0.0] * 3
    assert recovery(targets, targets, targets).isnan().all()
    found = Inversions(targets, 1 - targets, targets, torch.ones(3), torch.zeros(3), torch.zeros(3), 1)
    said = {one.measure: one.estimate.value for one in measures(found)}
    assert said["recovery"] == pytest.approx(1)
    assert said["distance_left"] == 0
    half = replace(found, after=torch.tensor([0.5, 0.25, 0.0]), before=torch.tensor([1.0, 0.5, 0.0]))
    assert {one.measure: one.estimate for one in measures(half)}["distance_left"].value == 0.5  # One start was there.
    assert said["ssim"] == pytest.approx(1)
    assert said["ssim_of_start"] < 0.5
    assert (said["representation_distance"], said["representation_distance_of_start"]) == (0, 1)


def test_a_second_network_judges():
    represent, _ = linear()
    shades = torch.tensor([0.0, 0.5, 1.0, 1.0]).view(4, 1, 1, 1)
    targets = shades * 0.9 + 0.05 + torch.zeros(4, 3, 4, 4)
    inverted = invert(represent, targets, targets.flip(0), Settings(steps=0))
    labels = torch.tensor([0, 1, 2, 2])
    found = {one.measure: one.estimate for one in opinions(Judge(3), inverted, labels, 2)}
    assert found["second_opinion_of_target"].value == 1
    assert found["second_opinion"].value == found["second_opinion_of_start"].value == 0
    assert found["second_opinion"].interval[1] == pytest.approx(0.4899, abs=1e-4)  # Wilson, 0 of 4


def test_sources_are_of_another_class():
    labels = torch.tensor([0, 0, 1, 2, 0])
    sources = other_class(labels)
    assert (labels[sources] != labels).all()
    with pytest.raises(UserError, match="of one class"):
        other_class(torch.zeros(3, dtype=torch.int64))


def test_a_target_without_a_representation_is_refused():
    represent, _ = linear()
    black = torch.zeros(2, 3, 4, 4)
    with pytest.raises(UserError, match="2 of 2 targets is 0"):
        invert(represent, black, pictures(2, 0), FINE)
