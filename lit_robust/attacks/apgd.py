"""Auto-PGD (Croce and Hein 2020): projected ascent that chooses its own step size."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from lit_robust.attacks.ascent import Ball, loss_gradient
from lit_robust.attacks.attack import Model, check_eps, check_number
from lit_robust.attacks.losses import Objective
from lit_robust.attacks.norms import NORMS, Generators, choose_generators
from lit_robust.attacks.survivors import NormName, Record, SurvivorAttack
from lit_robust.core.errors import UserError, check_choice, check_count

APGDLoss = Literal["cross_entropy", "margin", "dlr"]


@dataclass(frozen=True)
class APGD(SurvivorAttack):
    """Ascent with momentum whose step, at first 2 eps, halves where it no longer helps, going on from the best point.

    Croce and Hein 2020, with the settings of their code (fra31/auto-attack, ``autopgd_base.py``). An image's
    search ends at its first mistake. Where this differs from that code: the first window of steps counts the rise from
    the start itself, where the code compares with 0; the gradient after the last step, which nobody uses, is not
    computed; L2 gradients keep their direction however small they are; several draws of a random network are averaged
    in loss and logits as they are in the gradient.

    Attributes:
        norm: ``l2`` or ``linf``.
        eps: radius in [0, 1] pixel units.
        steps: steps of a search, each one forward and one backward pass; and one more forward pass at the end.
        loss: what is raised: ``cross_entropy``; ``margin``, the highest wrong logit minus the right one; ``dlr``, the
            difference of logits ratio.
        targets: 0 for a search away from the label; else how many wrong classes are searched for, one after another
            from the likeliest on the clean image; at most all of them.
        restarts: searches from different random starts, for each target, each for the images still standing.
        draws: forward and backward passes averaged at each step, for networks with random numbers of their own
            (expectation over transformation, Athalye et al. 2018).
        rho: the step halves where no more than this share of the last steps raised the loss, in (0, 1).
        momentum: share of the plain step in each move after the first, in (0, 1]; the rest is the previous move.

    Raises:
        UserError: a setting is out of range.

    Example:
        >>> attack = APGD(norm="linf", eps=8 / 255, loss="dlr", targets=9)
        >>> attack.with_eps(4 / 255).targets
        9
    """

    norm: NormName = "linf"
    eps: float = 8 / 255
    steps: int = 100
    loss: APGDLoss = "cross_entropy"
    targets: int = 0
    restarts: int = 1
    draws: int = 1
    rho: float = 0.75
    momentum: float = 0.75

    def __post_init__(self) -> None:
        check_choice("APGD norm", self.norm, get_args(NormName))
        check_choice("APGD loss", self.loss, get_args(APGDLoss))
        check_eps("APGD eps", self.eps, self.norm)
        check_count("APGD steps", self.steps, 1)
        check_count("APGD targets", self.targets, 0)
        check_count("APGD restarts", self.restarts, 1)
        check_count("APGD draws", self.draws, 1)
        check_number("APGD rho", self.rho)
        check_number("APGD momentum", self.momentum)
        if not 0 < self.rho < 1:
            raise UserError(f"APGD rho is {self.rho}: give a share between 0 and 1, such as 0.75.")
        if not 0 < self.momentum <= 1:
            raise UserError(f"APGD momentum is {self.momentum}: give a share above 0 and at most 1, such as 0.75.")

    def _scored_loss(self) -> str:
        return self.loss

    def explore(self, record: Record, generator: Generators | None) -> None:
        """Search from random starts, for each target; see ``SurvivorAttack``."""
        targets = record.ranked_targets(self.targets)
        for rank in range(targets.shape[1] if self.targets else 1):
            for _ in range(self.restarts):
                rows = record.survivors()
                if not len(rows):
                    return
                wanted = targets[rows, rank] if self.targets else None
                objective = Objective(self.loss, record.labels[rows], wanted)
                self._search(record, rows, objective, choose_generators(generator, rows))

    def _search(self, record: Record, rows: Tensor, objective: Objective, generator: Generators | None) -> None:
        assert generator is not None  # The call saw to it.
        ball = Ball(record.clean[rows], NORMS[self.norm], self.eps)
        # At distance eps from the clean image, in a direction of the ball's.
        offset = ball.norm.ball(ball.clean, 1.0, generator)
        start = ball.enter(ball.clean + offset * (self.eps / ball.norm.length(offset)))
        loss, gradient, answers, vanished = averaged_gradient(record.model, objective, start, self.draws)
        state, windows = SearchState.begin(start, loss, gradient, 2 * self.eps), checkpoint_windows(self.steps)
        for step in range(1, self.steps + 1):
            record.steps[rows] += self.draws
            record.vanished[rows] += vanished
            # One read of the accelerator a step tells what leaves the batch; the passes that saves cost far more.
            proposed = (answers != objective.labels).nonzero()[:, 0]
            if len(proposed):
                going = torch.ones_like(rows, dtype=torch.bool)
                going[proposed] = ~record.judge(rows[proposed], state.images[proposed])
                left = going.nonzero()[:, 0]
                if not len(left):
                    return
                rows, objective = rows[left], objective.select(left)
                ball, state = ball.select(left), state.select(left)
            if step - 1 in windows:
                state = state.checked(windows[step - 1], self.rho)
            images = state.moved(ball, self.momentum if step > 1 else 1.0)
            if step < self.steps:
                loss, gradient, answers, vanished = averaged_gradient(record.model, objective, images, self.draws)
                state = state.seen(images, loss, gradient)
        # Where the last step leads is scored without a gradient, and where it fails the point of highest loss counts.
        left = (~record.judge(rows, images)).nonzero()[:, 0]
        record.judge(rows[left], state.best[left])

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values; eps is in [0, 1] pixel units."""
        return super().protocol() | {"start": "at distance eps", "verdict": "broken at any step"}


def averaged_gradient(
    model: Model, objective: Objective, images: Tensor, draws: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses ``[B]``, their gradients, answers and how many draws' gradients vanished, both int64 ``[B]``.

    Args:
        model: float images in [0, 1] to logits.
        objective: the loss.
        images: float32 ``[B, C, H, W]``.
        draws: passes that losses, gradients and logits are averaged over.

    Raises:
        UserError: the loss does not depend on the images through autograd.
    """
    seen = [loss_gradient(model, objective.loss, images) for _ in range(draws)]
    loss, gradient, logits = (
        torch.stack(parts).mean(0) if draws > 1 else parts[0] for parts in zip(*(one[:3] for one in seen), strict=True)
    )
    return loss, gradient, logits.argmax(1), torch.stack([one.vanished for one in seen]).sum(0)


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
class SearchState:
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
