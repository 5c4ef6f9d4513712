from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks import APGD, PGD, Attack, Square
from lit_robust.attacks.ascent import Ball, ascent_step, best_iterate, last_iterate
from lit_robust.attacks.norms import L1, L2, Linf, Norm
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


@pytest.mark.parametrize(("norm", "eps"), [(L1(), 0.5), (L2(), 0.02), (Linf(), 1 / 255)])
def test_rounding_carries_no_image_out_of_its_ball(norm: Norm, eps: float) -> None:
    # Images of one colour, 64 shades: every pixel of one rounds alike.
    clean = (0.5 + torch.arange(64) / 255 / 2).view(-1, 1, 1, 1).expand(-1, 3, 48, 48).contiguous()
    ball = Ball(clean, norm, eps)
    images = ball.enter(clean + 1)
    tight = ball.tighten(images)
    length = norm.length(tight.double() - clean.double()).flatten()
    assert (length <= eps * (1 + 1e-6) + 6e-8).all()
    before = norm.length(images.double() - clean.double()).flatten()
    inside = before <= eps * (1 + 9e-7) + 6e-8
    assert torch.equal(tight[inside], images[inside])
    if not isinstance(norm, Linf):
        assert before.max() > eps * (1 + 1.5e-6), "rounding has to carry some image out"
        # What is drawn in stays near the wall: a pixel moves by one step of its grid.
        assert (length > eps * (1 - 2e-3)).all()


@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.02, steps=3),
        PGD(eps=0.02, steps=3, keep="first"),
        PGD(eps=0.02, steps=3, start="sphere", keep="best"),
        APGD("l2", 0.02, 4),
        Square("l2", 0.02, 4),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{getattr(attack, 'keep', '')}",
)
def test_no_attack_returns_an_image_beyond_eps(attack: Attack) -> None:
    clean = (0.5 + torch.arange(32) / 255).view(-1, 1, 1, 1).expand(-1, 3, 48, 48).contiguous()

    def brightness(images: Tensor) -> Tensor:
        height = images.mean((1, 2, 3))
        return torch.stack([height, 0.7 - height, 0 * height], 1)

    labels = brightness(clean).argmax(1)
    result = attack(brightness, clean, labels, generator=torch.Generator().manual_seed(0))
    length = (result.images.double() - clean.double()).flatten(1).norm(dim=1)
    assert length.max() <= 0.02 * (1 + 1e-6) + 6e-8
    assert length.max() > 0.0199
