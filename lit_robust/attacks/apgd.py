"""Auto-PGD (Croce and Hein 2020): projected ascent that chooses its own step size."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from lit_robust.attacks.ascent import Ball
from lit_robust.attacks.attack import Model
from lit_robust.attacks.checks import check_count, check_eps, check_number
from lit_robust.attacks.climb import Climb, checkpoint_windows
from lit_robust.attacks.draws import Generators, choose_generators
from lit_robust.attacks.gradients import slope
from lit_robust.attacks.norms import NORMS
from lit_robust.attacks.objective import Objective
from lit_robust.attacks.survivors import Ledger, NormName, SurvivorAttack
from lit_robust.core.errors import UserError, check_choice

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

    def explore(self, ledger: Ledger, generator: Generators | None) -> None:
        """Search from random starts, for each target; see ``SurvivorAttack``."""
        targets = ledger.ranked_targets(self.targets)
        for rank in range(targets.shape[1] if self.targets else 1):
            for _ in range(self.restarts):
                rows = ledger.open()
                if not len(rows):
                    return
                wanted = targets[rows, rank] if self.targets else None
                objective = Objective(self.loss, ledger.labels[rows], wanted)
                self._search(ledger, rows, objective, choose_generators(generator, rows))

    def _search(self, ledger: Ledger, rows: Tensor, objective: Objective, generator: Generators | None) -> None:
        assert generator is not None  # The call saw to it.
        ball = Ball(ledger.clean[rows], NORMS[self.norm], self.eps)
        # At distance eps from the clean image, in a direction of the ball's.
        offset = ball.norm.ball(ball.clean, 1.0, generator)
        start = ball.enter(ball.clean + offset * (self.eps / ball.norm.length(offset)))
        loss, gradient, answers, vanished = look(ledger.model, objective, start, self.draws)
        climb, windows = Climb.begin(start, loss, gradient, 2 * self.eps), checkpoint_windows(self.steps)
        for step in range(1, self.steps + 1):
            ledger.steps[rows] += self.draws
            ledger.vanished[rows] += vanished
            # One read of the accelerator a step tells what leaves the batch; the passes that saves cost far more.
            proposed = (answers != objective.labels).nonzero()[:, 0]
            if len(proposed):
                going = torch.ones_like(rows, dtype=torch.bool)
                going[proposed] = ~ledger.settle(rows[proposed], climb.images[proposed])
                left = going.nonzero()[:, 0]
                if not len(left):
                    return
                rows, objective = rows[left], objective.select(left)
                ball, climb = ball.select(left), climb.select(left)
            if step - 1 in windows:
                climb = climb.checked(windows[step - 1], self.rho)
            images = climb.moved(ball, self.momentum if step > 1 else 1.0)
            if step < self.steps:
                loss, gradient, answers, vanished = look(ledger.model, objective, images, self.draws)
                climb = climb.seen(images, loss, gradient)
        # Where the last step leads is scored without a gradient, and where it fails the point of highest loss counts.
        left = (~ledger.settle(rows, images)).nonzero()[:, 0]
        ledger.settle(rows[left], climb.best[left])

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values; eps is in [0, 1] pixel units."""
        return {
            "name": "APGD",
            "norm": self.norm,
            "eps": float(self.eps),
            "steps": self.steps,
            "loss": self.loss,
            "targets": self.targets,
            "restarts": self.restarts,
            "draws": self.draws,
            "rho": float(self.rho),
            "momentum": float(self.momentum),
            "start": "at distance eps",
            "verdict": "broken at any step",
        }

    def with_eps(self, eps: float) -> Self:
        """Return this attack at another radius, to which its steps adapt; see ``Attack``."""
        return replace(self, eps=eps)


def look(model: Model, objective: Objective, images: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses ``[B]``, their gradients, answers and how many draws' gradients vanished, both int64 ``[B]``.

    Args:
        model: float images in [0, 1] to logits.
        objective: the loss.
        images: float32 ``[B, C, H, W]``.
        draws: passes that losses, gradients and logits are averaged over.

    Raises:
        UserError: the loss does not depend on the images through autograd.
    """
    seen = [slope(model, objective.loss, images) for _ in range(draws)]
    loss, gradient, logits = (torch.stack(parts).mean(0) for parts in zip(*(one[:3] for one in seen), strict=True))
    return loss, gradient, logits.argmax(1), torch.stack([one.vanished for one in seen]).sum(0)
