"""The state of Auto-PGD's search: one row an image, every step a pure function of the one before."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from lit_robust.attacks.ascent import Ball


def checkpoint_windows(steps: int) -> dict[int, int]:
    """Return after which steps the step size is looked at, and how many steps each time since the last look.

    The first window is 22% of all steps, each next one 3% shorter, down to 6% (Croce and Hein 2020), in
    whole steps as ``autopgd_base.py`` of fra31/auto-attack rounds them.
    """
    window, least, shorter = (max(percent * steps // 100, 1) for percent in (22, 6, 3))
    windows, step = {}, window
    while step <= steps:
        windows[step] = window
        window = max(window - shorter, least)
        step += window
    return windows


def move(images: Tensor, before: Tensor, gradient: Tensor, ball: Ball, step_size: Tensor, share: float) -> Tensor:
    """Return where a step with momentum leads: ``share`` of the projected plain step and the rest of the last move.

    Croce and Hein 2020; both the plain step and the point returned are projected to the ball.

    Args:
        images: float32 ``[B, C, H, W]``, where the search stands.
        before: the same, one step earlier.
        gradient: of the loss at ``images``.
        ball: where it stays.
        step_size: float32 ``[B, 1, 1, 1]``, in [0, 1] pixel units.
        share: in (0, 1]; 1 is a step without momentum.
    """
    # Scaled to a largest value of 1 first, so that no gradient is too small for its squares to be summed.
    scaled = gradient / gradient.abs().amax((1, 2, 3), True).clamp_min(torch.finfo(torch.float32).tiny)
    plain = ball.enter(images + step_size * ball.norm.normalise(scaled))
    return ball.enter(images + share * (plain - images) + (1 - share) * (images - before))


@dataclass(frozen=True)
class Climb:
    """Where the search of each image stands.

    Attributes:
        images: float32 ``[B, C, H, W]``, the current points.
        before: the points one step earlier.
        gradient: of the loss at ``images``.
        best: the points of highest loss so far.
        best_gradient: the gradients there.
        best_loss: float32 ``[B]``.
        loss: float32 ``[B]``, the last one seen; after a checkpoint not that at ``images``.
        rises: int64 ``[B]``, steps since the last checkpoint that raised the loss.
        step_size: float32 ``[B, 1, 1, 1]``.
        halved: bool ``[B]``, whether the last checkpoint halved the step; true before the first.
        checked_loss: float32 ``[B]``, ``best_loss`` at the last checkpoint.
    """

    images: Tensor
    before: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    loss: Tensor
    rises: Tensor
    step_size: Tensor
    halved: Tensor
    checked_loss: Tensor

    @classmethod
    def begin(cls, start: Tensor, loss: Tensor, gradient: Tensor, step_size: float) -> Self:
        """Return the state at ``start``, ``[B, C, H, W]``, with loss ``[B]`` and gradient there."""
        return cls(
            images=start,
            before=start,
            gradient=gradient,
            best=start,
            best_gradient=gradient,
            best_loss=loss,
            loss=loss,
            rises=torch.zeros_like(loss, dtype=torch.int64),
            step_size=torch.full_like(loss, step_size).view(-1, 1, 1, 1),
            halved=torch.ones_like(loss, dtype=torch.bool),
            checked_loss=loss,
        )

    def moved(self, ball: Ball, share: float) -> Tensor:
        """Return the next points; see ``move``."""
        return move(self.images, self.before, self.gradient, ball, self.step_size, share)

    def seen(self, images: Tensor, loss: Tensor, gradient: Tensor) -> Self:
        """Return the state after a step to ``images``, with loss ``[B]`` and gradient there."""
        higher = loss > self.best_loss
        where = higher.view(-1, 1, 1, 1)
        return replace(
            self,
            images=images,
            before=self.images,
            gradient=gradient,
            best=torch.where(where, images, self.best),
            best_gradient=torch.where(where, gradient, self.best_gradient),
            best_loss=torch.where(higher, loss, self.best_loss),
            loss=loss,
            rises=self.rises + (loss > self.loss),
        )

    def checked(self, window: int, rho: float) -> Self:
        """Return the state after a checkpoint: where the step no longer helps it halves, and the best point is next.

        It no longer helps where at most ``rho`` of the window's steps raised the loss, or where the best loss stands
        still since the last checkpoint, which did not halve it (Croce and Hein 2020, conditions 1 and 2, the first with
        the ``<=`` of their code where the paper has ``<``). The point before stays what it was, so the next move's
        momentum leads from it to the best point, as in their code.
        """
        halve = (self.rises <= rho * window) | (~self.halved & (self.checked_loss >= self.best_loss))
        where = halve.view(-1, 1, 1, 1)
        return replace(
            self,
            images=torch.where(where, self.best, self.images),
            gradient=torch.where(where, self.best_gradient, self.gradient),
            rises=torch.zeros_like(self.rises),
            step_size=torch.where(where, self.step_size / 2, self.step_size),
            halved=halve,
            checked_loss=self.best_loss,
        )

    def select(self, chosen: Tensor) -> Self:
        """Return the state of the images that ``chosen``, bool ``[B]`` or int64 rows, names."""
        return replace(self, **{field.name: getattr(self, field.name)[chosen] for field in fields(self)})
