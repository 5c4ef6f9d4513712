"""Scrambled images: what the patches' orders keep and change."""

import math

import numpy as np
import pytest
import torch

from lit_robust.core.errors import UserError
from lit_robust.stimuli.scrambled import Scrambled, patch_order, scramble
from lit_robust.stimuli.stimulus import Origin


def drawn(count, side=24, seed=0):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def origins(*keys):
    return [Origin(key, number, 0) for number, key in enumerate(keys)]


@pytest.mark.parametrize("grid", [2, 3, 4, 8])
def test_pixels_are_the_same_in_another_place(grid):
    images = drawn(3)
    made = torch.stack(Scrambled(grid=grid, permutation="derangement").make(images, origins("a", "b", "c")))
    assert torch.equal(made.flatten(2).sort().values, images.flatten(2).sort().values)
    size = 24 // grid
    for row in range(grid):
        for column in range(grid):
            place = (..., slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size))
            assert not torch.equal(made[place], images[place])


def test_the_inverse_order_restores_the_image():
    images = drawn(2)
    orders = np.stack([patch_order(16, "random", seed) for seed in (1, 2)])
    assert torch.equal(scramble(scramble(images, orders), np.argsort(orders, 1)), images)


def test_a_grid_of_one_patch_changes_nothing():
    images = drawn(2)
    assert torch.equal(torch.stack(Scrambled(grid=1).make(images, origins("a", "b"))), images)


def test_the_order_follows_from_the_key_alone():
    images, stimulus = drawn(3), Scrambled(grid=4, seed=3)
    together = stimulus.make(images, origins("a", "b", "c"))
    alone = stimulus.make(images[2:], [Origin("c", 77, 5)])
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(Scrambled(grid=4, seed=4).make(images[2:], origins("c"))[0], alone[0])
    assert not torch.equal(stimulus.make(images[2:], origins("d"))[0], alone[0])


def test_random_orders_are_uniform_and_derangements_have_no_fixed_point():
    orders = np.stack([patch_order(4, "random", seed) for seed in range(4800)])
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(4)
    # Each of the 24 is expected 200 times, with a standard deviation of 13.8.
    assert np.abs(counts - 200).max() < 5 * 13.8
    assert abs((orders == np.arange(4)).sum(1).mean() - 1) < 0.06
    deranged = np.stack([patch_order(4, "derangement", seed) for seed in range(900)])
    assert not (deranged == np.arange(4)).any()
    counts = np.unique(deranged, axis=0, return_counts=True)[1]
    assert len(counts) == 9  # The subfactorial of 4.
    assert np.abs(counts - 100).max() < 50


def test_the_papers_code_has_one_order():
    """``[2 3 1 0]`` for 2 x 2 patches, whatever the image."""
    assert patch_order(4, "fixed-212", 0).tolist() == patch_order(4, "fixed-212", 9).tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"grid": 0}, "grid is 0: give 1 to 1000 patches a side"),
        ({"grid": 1, "permutation": "derangement"}, "One patch has no other place"),
        ({"permutation": "mixed"}, "permutation is 'mixed': choose one of"),
        ({"seed": -1}, "seed is -1: give 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Scrambled(**settings)


def test_sides_that_the_grid_does_not_divide_are_refused():
    with pytest.raises(UserError, match="Images of 24 x 24 px have no grid of 5 x 5 equal patches"):
        Scrambled(grid=5).make(drawn(1), origins("a"))


def test_images_of_another_type_are_refused():
    with pytest.raises(UserError, match="stimuli need uint8"):
        Scrambled().make(drawn(1) / 255, origins("a"))
