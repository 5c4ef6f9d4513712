"""Projected gradient ascent from a given start, for any per-image loss; no random number is drawn here."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_robust.attacks.attack import Model
from lit_robust.attacks.gradients import LogitLoss, Slope, slope
from lit_robust.attacks.norms import Norm, Radius
from lit_robust.core.logits import logits_of

PIXEL = 6e-8
"""What the largest value of a pixel, 1, is rounded to."""


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

    def tighten(self, images: Tensor) -> Tensor:
        """Draw in the images that rounding has carried out of the ball; all others stay as they are.

        A pixel near 1 is a multiple of 6e-8. Where all pixels of an image round alike, as in one of a single colour,
        its distance may pass a small radius by some 1e-5 of it. Here the sum is rounded towards the clean image.
        """
        offset = images - self.clean
        # Row by row, as the norm of 150,528 values at once is rounded by some 1e-6, too.
        rows = self.norm.length(offset.flatten(0, 2)).view(len(offset), -1)
        length = self.norm.length(rows).view(-1, 1, 1, 1)
        target = offset * (self.eps / length.clamp_min(1e-30))
        drawn = self.clean + target
        drawn = torch.where((drawn - self.clean).abs() > target.abs(), torch.nextafter(drawn, self.clean), drawn)
        return torch.where(length > self.eps * (1 + 1e-6) + PIXEL, drawn, images)


def ascent_step(model: Model, loss: LogitLoss, images: Tensor, ball: Ball, step_size: float) -> tuple[Tensor, Slope]:
    """Take one step of length ``step_size`` up the loss: one forward and one backward pass.

    Gradients must be enabled, and ``images`` must not be inference tensors.

    Returns:
        the moved images, and losses, gradient and logits where the step began.

    Raises:
        UserError: the loss does not depend on the images through autograd.
    """
    here = slope(model, loss, images)
    return ball.enter(images.detach() + step_size * ball.norm.ascent(here.gradient, images.detach())), here


class Search(NamedTuple):
    """Where a search led.

    Attributes:
        images: float32 ``[B, C, H, W]`` in [0, 1].
        vanished: int64 ``[B]``, at how many steps the gradient was zero or not finite.
    """

    images: Tensor
    vanished: Tensor


def last_iterate(model: Model, loss: LogitLoss, start: Tensor, ball: Ball, step_size: float, steps: int) -> Search:
    """Return where ``steps`` steps lead: that many forward and backward passes, and no other."""
    images, vanished = start, torch.zeros(len(start), dtype=torch.int64, device=start.device)
    for _ in range(steps):
        images, here = ascent_step(model, loss, images, ball, step_size)
        vanished += here.vanished
    return Search(images, vanished)


def best_iterate(model: Model, loss: LogitLoss, start: Tensor, ball: Ball, step_size: float, steps: int) -> Search:
    """Return each image's point of highest loss on the way, the start included; costs one more forward pass."""
    images, best, vanished = start, start, torch.zeros(len(start), dtype=torch.int64, device=start.device)
    best_losses = start.new_full(start.shape[:1], float("-inf"))
    for _ in range(steps):
        moved, here = ascent_step(model, loss, images, ball, step_size)
        best, best_losses = _higher(best, best_losses, images, here.losses)
        images = moved
        vanished += here.vanished
    # Not under `no_grad`: see `frozen` on autocast's cache. Frozen weights build no graph anyway.
    best, _ = _higher(best, best_losses, images, loss(logits_of(model(images.detach())).float()).detach())
    return Search(best, vanished)


def _higher(best: Tensor, best_losses: Tensor, images: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    higher = losses > best_losses
    return torch.where(higher.view(-1, 1, 1, 1), images, best), torch.where(higher, losses, best_losses)
