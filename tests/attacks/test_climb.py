from itertools import pairwise

import torch
from torch import Tensor

from lit_robust.attacks.ascent import Ball
from lit_robust.attacks.climb import Climb, checkpoint_windows, move
from lit_robust.attacks.norms import L2, Linf


def test_checkpoints_are_the_paper_s() -> None:
    # Section 3.1: p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), in whole percent.
    places = [0, 22]
    while places[-1] + max(places[-1] - places[-2] - 3, 6) <= 100:
        places.append(places[-1] + max(places[-1] - places[-2] - 3, 6))
    windows = checkpoint_windows(100)
    assert list(windows) == places[1:]
    assert list(windows.values()) == [later - earlier for earlier, later in pairwise(places)]


def test_few_steps_are_each_a_checkpoint() -> None:
    assert checkpoint_windows(4) == {1: 1, 2: 1, 3: 1, 4: 1}


def test_a_move_is_the_formula_worked_out() -> None:
    clean = torch.full((1, 1, 1, 2), 0.5)
    images, before = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([[[[0.5, 0.52]]]])
    gradient, step = torch.tensor([[[[3.0, -4.0]]]]), torch.full((1, 1, 1, 1), 0.1)
    # Linf: the sign step leads to (0.7, 0.4), cut to 0.15 around 0.5: (0.65, 0.4). Momentum: 0.6 + 0.75 * 0.05 +
    # 0.25 * 0.1 = 0.6625, cut to 0.65; 0.5 - 0.75 * 0.1 - 0.25 * 0.02 = 0.42.
    moved = move(images, before, gradient, Ball(clean, Linf(), 0.15), step, 0.75)
    torch.testing.assert_close(moved, torch.tensor([[[[0.65, 0.42]]]]))
    # L2, far from the ball's wall: the step is (0.06, -0.08).
    moved = move(images, before, gradient, Ball(clean, L2(), 1.0), step, 0.75)
    torch.testing.assert_close(moved, torch.tensor([[[[0.6 + 0.045 + 0.025, 0.5 - 0.06 - 0.005]]]]))


def test_a_gradient_too_small_to_square_keeps_its_direction() -> None:
    clean = torch.full((2, 1, 1, 2), 0.5)
    gradient = torch.tensor([[[[3e-30, -4e-30]]], [[[0.0, 0.0]]]])
    moved = move(clean, clean, gradient, Ball(clean, L2(), 1.0), torch.full((2, 1, 1, 1), 0.1), 1.0)
    torch.testing.assert_close(moved - clean, torch.tensor([[[[0.06, -0.08]]], [[[0.0, 0.0]]]]))


def observed(losses: list[list[float]]) -> Climb:
    """A search of as many images as rows, with these losses in turn; an image's pixel is its step's number."""
    columns = [torch.tensor(column) for column in zip(*losses, strict=True)]

    def pixels(number: int) -> Tensor:
        return torch.full((len(losses), 1, 1, 1), float(number))

    climb = Climb.begin(pixels(0), columns[0], pixels(0), step_size=1.0)
    for number, column in enumerate(columns[1:], 1):
        climb = climb.seen(pixels(number), column, pixels(number))
    return climb


def test_the_step_halves_where_too_few_steps_rise_and_goes_on_from_the_best_point() -> None:
    # Of four steps three rise; of four steps four rise. 3 <= 0.75 * 4.
    climb = observed([[0.0, 3.0, 1.0, 2.0, 2.5], [0.0, 1.0, 2.0, 3.0, 4.0]]).checked(4, 0.75)
    assert climb.step_size.flatten().tolist() == [0.5, 1.0]
    assert climb.images.flatten().tolist() == [1.0, 4.0]
    assert climb.gradient.flatten().tolist() == [1.0, 4.0]
    assert climb.before.flatten().tolist() == [3.0, 3.0]
    assert climb.rises.tolist() == [0, 0]


def test_the_step_halves_where_the_best_loss_stands_still_since_a_checkpoint_that_did_not_halve() -> None:
    climb = observed([[0.0, 1.0, 2.0], [5.0, 1.0, 2.0]]).checked(2, 0.75)
    assert climb.halved.tolist() == [False, True]
    # All rise, but from far below, so no best loss improves; the second image's step halved just now.
    for number, loss in enumerate([0.5, 1.0], 3):
        there = torch.full((2, 1, 1, 1), float(number))
        climb = climb.seen(there, torch.tensor([loss, loss + 2]), there)
    assert climb.rises.tolist() == [1, 2]
    again = climb.seen(climb.images, torch.tensor([1.5, 3.5]), climb.gradient).checked(2, 0.75)
    assert again.halved.tolist() == [True, False]
    assert again.step_size.flatten().tolist() == [0.5, 0.5]
