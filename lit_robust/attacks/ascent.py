"""Projected gradient ascent from a given start, for any per-image loss; no random number is drawn here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_robust.attacks.norms import Norm, Radius
from lit_robust.errors import UserError

ImageLoss = Callable[[Tensor], Tensor]
"""Images ``[B, C, H, W]`` to one loss an image ``[B]``, an image's loss depending on that image alone."""


@dataclass(frozen=True)
class Ball:
    """The images an attack may reach: within ``eps`` of the clean ones, and in [0, 1].

    Attributes:
        clean: float32 ``[B, C, H, W]`` in [0, 1], the centres.
        norm: how distance is measured.
        eps: radius, in [0, 1] pixel units; one for all images, or each image's own ``[B, 1, 1, 1]``.
    """

    clean: Tensor
    norm: Norm
    eps: Radius

    def select(self, chosen: Tensor) -> "Ball":
        """Return the balls of the images that ``chosen``, bool ``[B]`` or int64 rows, names."""
        return Ball(self.clean[chosen], self.norm, self.eps[chosen] if isinstance(self.eps, Tensor) else self.eps)

    def enter(self, images: Tensor) -> Tensor:
        """Project the offset from the clean images to the ball, then clamp to [0, 1], in this order.

        The order is MadryLab's (``attack_steps.py``). Clamping draws an image nearer to the clean one, so both
        constraints hold; in L2 it is not the nearest such image.
        """
        return (self.clean + self.norm.project(images - self.clean, self.eps)).clamp(0, 1)


def ascent_step(loss: ImageLoss, images: Tensor, ball: Ball, step_size: float) -> tuple[Tensor, Tensor]:
    """Take one step of length ``step_size`` up the loss: one forward and one backward pass.

    Gradients must be enabled, and ``images`` must not be inference tensors.

    Returns:
        the moved images, and the losses ``[B]`` where the step began.

    Raises:
        UserError: the loss does not depend on the images through autograd.
    """
    images = images.detach().requires_grad_(True)
    losses = loss(images)
    if not losses.requires_grad:
        raise UserError(
            "The model's logits carry no gradient to the images: remove no_grad, inference_mode or detach from its "
            "forward, or attack a differentiable stand-in."
        )
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    moved = images.detach() + step_size * ball.norm.normalise(gradient)
    return ball.enter(moved), losses.detach()


def last_iterate(loss: ImageLoss, start: Tensor, ball: Ball, step_size: float, steps: int) -> Tensor:
    """Return where ``steps`` steps lead: that many forward and backward passes, and no other."""
    images = start
    for _ in range(steps):
        images, _ = ascent_step(loss, images, ball, step_size)
    return images


def best_iterate(loss: ImageLoss, start: Tensor, ball: Ball, step_size: float, steps: int) -> Tensor:
    """Return each image's point of highest loss on the way, the start included; costs one more forward pass."""
    images, best = start, start
    best_losses = start.new_full(start.shape[:1], float("-inf"))
    for _ in range(steps):
        moved, losses = ascent_step(loss, images, ball, step_size)
        best, best_losses = _higher(best, best_losses, images, losses)
        images = moved
    # Not under `no_grad`: see `frozen` on autocast's cache. Frozen weights build no graph anyway.
    best, _ = _higher(best, best_losses, images, loss(images.detach()).detach())
    return best


def _higher(best: Tensor, best_losses: Tensor, images: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    higher = losses > best_losses
    return torch.where(higher.view(-1, 1, 1, 1), images, best), torch.where(higher, losses, best_losses)
