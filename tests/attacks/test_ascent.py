from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks.ascent import Ball, ascent_step, best_iterate, last_iterate
from lit_robust.attacks.norms import L2, Linf
from lit_robust.core.errors import UserError

WEIGHTS = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))


def linear(images: Tensor) -> Tensor:
    """One logit."""
    return (images * WEIGHTS).sum((1, 2, 3))[:, None]


def itself(logits: Tensor) -> Tensor:
    return logits[:, 0]


def test_one_l2_step_up_a_linear_loss_moves_by_step_along_the_gradient() -> None:
    clean = torch.full((5, 3, 4, 4), 0.5)
    moved, here = ascent_step(linear, itself, clean, Ball(clean, L2(), 1.0), 0.3)
    # 0.3 over 48 values never leaves [0, 1] here; fp32 gives 7 digits of numbers near 0.5.
    torch.testing.assert_close(moved - clean, (0.3 * WEIGHTS / WEIGHTS.norm()).expand_as(clean), rtol=0, atol=1e-7)
    torch.testing.assert_close(here.losses, itself(linear(clean)))


def test_long_search_up_a_linear_loss_ends_at_the_ball_s_highest_point() -> None:
    clean = torch.full((2, 3, 4, 4), 0.5)
    found = last_iterate(linear, itself, clean, Ball(clean, L2(), 0.4), 0.15, 10).images
    # Highest point of a linear function on a ball: its centre plus the radius along the gradient.
    torch.testing.assert_close(found - clean, (0.4 * WEIGHTS / WEIGHTS.norm()).expand_as(clean), rtol=0, atol=2e-7)
    found = last_iterate(linear, itself, clean, Ball(clean, Linf(), 0.1), 0.03, 10).images
    torch.testing.assert_close(found - clean, (0.1 * WEIGHTS.sign()).expand_as(clean), rtol=0, atol=1e-7)


def test_ball_projects_first_and_clamps_second() -> None:
    clean = torch.tensor([0.9, 0.5]).view(1, 1, 1, 2)
    entered = Ball(clean, L2(), 1.0).enter(clean + torch.tensor([3.0, 4.0]).view(1, 1, 1, 2))
    # Offset (3, 4) shrinks to (0.6, 0.8); the sum (1.5, 1.3) is clamped. Clamping first would give (0.9 + 0.1, 1.0).
    assert entered.flatten().tolist() == [1.0, 1.0]
    entered = Ball(clean, L2(), 0.5).enter(clean + torch.tensor([-3.0, 4.0]).view(1, 1, 1, 2))
    torch.testing.assert_close(entered.flatten(), torch.tensor([0.9 - 0.3, 0.5 + 0.4]))


def test_best_iterate_finds_the_highest_point_on_the_way() -> None:
    # A hill at 0.55 that steps of 0.1 from 0.5 jump over: to 0.6, back to 0.5, and so on.
    def hill(images: Tensor) -> Tensor:
        return -(images - 0.52).square().sum((1, 2, 3))[:, None]

    clean = torch.full((3, 1, 1, 1), 0.5)
    ball = Ball(clean, Linf(), 1.0)
    assert last_iterate(hill, itself, clean, ball, 0.1, 1).images.flatten().tolist() == pytest.approx([0.6] * 3)
    assert torch.equal(best_iterate(hill, itself, clean, ball, 0.1, 1).images, clean)
    assert torch.equal(best_iterate(hill, itself, clean, ball, 0.1, 0).images, clean)


def test_best_iterate_is_chosen_image_by_image(
    bumpy: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> None:
    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    ball = Ball(images, L2(), 3.0)
    path = [images]
    for _ in range(6):
        path.append(ascent_step(bumpy, loss, path[-1], ball, 2.5)[0])
    losses = torch.stack([loss(bumpy(point)).detach() for point in path])
    best = best_iterate(bumpy, loss, images, ball, 2.5, 6).images
    assert torch.equal(best, torch.stack(path)[losses.argmax(0), torch.arange(8)])
    assert len(set(losses.argmax(0).tolist())) > 1, "steps this long should overshoot for some images"


def test_a_loss_cut_off_from_the_images_is_refused() -> None:
    clean = torch.full((1, 3, 4, 4), 0.5)
    with pytest.raises(UserError, match="no gradient to the images"):
        ascent_step(lambda images: linear(images.detach()), itself, clean, Ball(clean, L2(), 1.0), 0.1)
