"""Projected gradient ascent from a given start, for any per-image loss; no random number is drawn here.

It ends after all steps, or for each image where the network first gives the answer that the attack is after.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_robust.attacks.attack import Model, Score, score
from lit_robust.attacks.losses import Objective
from lit_robust.attacks.norms import Norm, Radius, none_on_cpu, to_unit_size
from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of

LogitLoss = Callable[[Tensor], Tensor]
"""Logits ``[B, num_classes]`` to one loss an image ``[B]``, an image's loss depending on its own logits alone."""

# What an image's largest logit gradient is made before it goes back through the network. Of a sure network it is 1e-8
# and less, which fp16 rounds to 0. From 2 ** 10 there are factors of 64 up to fp16's largest number, 65504, and of
# 1e7 down to its smallest normal one, 6e-5.
HIGHEST = 2.0**10


class LossGradient(NamedTuple):
    """What a forward and a backward pass tell of images.

    Attributes:
        losses: float32 ``[B]``.
        gradient: float32 ``[B, C, H, W]``, of each image its own loss's.
        logits: float32 ``[B, num_classes]``.
        vanished: bool ``[B]``, true where the gradient is zero or not finite, and so leads nowhere.
    """

    losses: Tensor
    gradient: Tensor
    logits: Tensor
    vanished: Tensor


def loss_gradient(model: Model, loss: LogitLoss, images: Tensor) -> LossGradient:
    """Run the network forward and backward, once each.

    Every image's gradient travels back at a size that fp16 holds and returns to its own size after that. The factor is
    a power of two, so without rounding to a narrower type nothing changes. An image whose gradient is undefined or
    infinite anywhere, as where fp16 overflows on the way, gets one of zero and counts among those that vanished.

    Gradients must be enabled, and ``images`` must not be inference tensors.

    Args:
        model: float images in [0, 1] to logits.
        loss: of the logits, in fp32.
        images: float32 ``[B, C, H, W]``.

    Raises:
        UserError: the loss does not depend on the images through autograd.
    """
    images = images.detach().requires_grad_(True)
    logits = logits_of(model(images)).float()
    losses = loss(logits)
    gradient: Tensor | None = None
    if losses.requires_grad:
        (outer,) = torch.autograd.grad(losses.sum(), logits)
        factor = HIGHEST * to_unit_size(outer)
        (gradient,) = torch.autograd.grad(logits, images, outer * factor, allow_unused=True)
    if gradient is None:
        raise UserError(
            "The model's logits carry no gradient to the images: remove no_grad, inference_mode or detach from its "
            "forward, or attack a differentiable stand-in."
        )
    # The images' layout, not the convolutions': what follows mixes both, which takes twice as long for unlike ones.
    own = torch.div(gradient, factor.view(-1, 1, 1, 1), out=torch.empty_like(images, requires_grad=False))
    least, most = own.flatten(1).aminmax(dim=1)  # A fourth of the time of a norm; both are NaN if anything is.
    led = ((least < 0) | (most > 0)) & least.isfinite() & most.isfinite()
    own.masked_fill_(~led.view(-1, 1, 1, 1), 0.0)
    return LossGradient(losses.detach(), own, logits.detach(), ~led)


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
        return self.norm.project(images - self.clean, self.eps).add_(self.clean).clamp_(0, 1)

    def tighten(self, images: Tensor) -> Tensor:
        """Draw in the images that rounding has carried out of the ball; all others stay as they are.

        A pixel near 1 is a multiple of 6e-8. Where all pixels of an image round alike, as in one of a single colour,
        its distance may pass a small radius by some 1e-5 of it. Here the sum is rounded towards the clean image.
        """
        offset = images - self.clean
        # Row by row, as the norm of 150,528 values at once is rounded by some 1e-6, too.
        rows = self.norm.length(offset.flatten(0, 2)).view(len(offset), offset.shape[1] * offset.shape[2])
        length = self.norm.length(rows).view(-1, 1, 1, 1)
        outside = length > self.eps * (1 + 1e-6) + PIXEL
        if none_on_cpu(outside):
            return images
        target = offset * (self.eps / length.clamp_min(1e-30))
        drawn = self.clean + target
        drawn = torch.where((drawn - self.clean).abs() > target.abs(), torch.nextafter(drawn, self.clean), drawn)
        return torch.where(outside, drawn, images)


def ascent_step(
    model: Model, loss: LogitLoss, images: Tensor, ball: Ball, step_size: float
) -> tuple[Tensor, LossGradient]:
    """Take one step of length ``step_size`` up the loss: one forward and one backward pass.

    Gradients must be enabled, and ``images`` must not be inference tensors.

    Returns:
        the moved images, and losses, gradient and logits where the step began.

    Raises:
        UserError: the loss does not depend on the images through autograd.
    """
    here = loss_gradient(model, loss, images)
    images = images.detach()
    return ball.enter(torch.add(images, ball.norm.ascent(here.gradient, images), alpha=step_size)), here


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


class SearchOutcome(NamedTuple):
    """Where a search led.

    Attributes:
        images: float32 ``[B, C, H, W]`` in [0, 1].
        score: what the network makes of them, in fp32.
        reached: bool ``[B]``, true where that is the answer the attack is after.
        steps: int64 ``[B]``, gradients computed for each image.
        vanished: int64 ``[B]``, how many of these were zero or not finite.
    """

    images: Tensor
    score: Score
    reached: Tensor
    steps: Tensor
    vanished: Tensor


def first_success(
    model: Model, objective: Objective, start: Tensor, ball: Ball, step_size: float, steps: int
) -> SearchOutcome:
    """Step up the loss, and take each image out of the work at its first iterate with the wanted answer.

    Every iterate counts, the start included. The answer of a gradient's forward pass, in the precision of the attack,
    only proposes a stop: a second one in fp32 decides, so this waits for an accelerator at each step. Images that no
    iterate breaks are returned as the last step leaves them.

    Args:
        model: float images in [0, 1] to logits, frozen by the caller.
        objective: the loss to raise and the answer wanted.
        start: float32 ``[B, C, H, W]``, where the search starts.
        ball: where it stays.
        step_size: length of a step, in [0, 1] pixel units.
        steps: number of steps at most.
    """
    count = len(start)
    result = start.clone()
    spent = torch.full((count,), steps, device=start.device)
    reached = torch.zeros(count, dtype=torch.bool, device=start.device)
    losses, answers = start.new_zeros(count), torch.zeros(count, dtype=torch.int64, device=start.device)
    vanished, probabilities = torch.zeros_like(answers), torch.zeros_like(reached)
    whole = ball
    rows, images, aim = torch.arange(count, device=start.device), start, objective

    def settle(some: Tensor, images: Tensor) -> Tensor:
        """Score iterates in fp32, write down what they are, and tell which have the wanted answer."""
        wanted, images = objective.select(some), whole.select(some).tighten(images)
        verdict = score(model, images, wanted.labels, lambda logits, _: wanted.loss(logits))
        result[some], losses[some], answers[some] = images, verdict.loss, verdict.answer
        probabilities[some] = verdict.probabilities
        over = wanted.reached(verdict.answer)
        reached[some] = over
        return over

    for step in range(steps):
        if not len(rows):
            break
        moved, here = ascent_step(model, aim.loss, images, ball, step_size)
        vanished[rows] += here.vanished
        proposed = aim.reached(here.logits.argmax(1)).nonzero()[:, 0]
        if len(proposed):
            over = settle(rows[proposed], images[proposed].detach())
            spent[rows[proposed]] = torch.where(over, step + 1, steps)
            going = torch.ones_like(rows, dtype=torch.bool)
            going[proposed] = ~over
            left = going.nonzero()[:, 0]
            rows, moved, aim, ball = rows[left], moved[left], aim.select(left), ball.select(left)
        images = moved
    if len(rows):
        settle(rows, images.detach())
    verdict = Score(answers != objective.labels, losses, answers, probabilities)
    return SearchOutcome(result, verdict, reached, spent, vanished)
