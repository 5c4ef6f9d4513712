"""Projected gradient descent (Madry et al. 2018), in L2 and Linf."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from lit_robust.attacks.ascent import Ball, best_iterate, last_iterate
from lit_robust.attacks.attack import Attack, AttackResult, Model, check_batch, check_range
from lit_robust.attacks.draws import Generators
from lit_robust.attacks.frozen import frozen
from lit_robust.attacks.losses import LOSSES
from lit_robust.attacks.norms import L2, Linf
from lit_robust.attacks.scoring import Score, check_numbers, score
from lit_robust.errors import UserError

NormName = Literal["l2", "linf"]
StartName = Literal["none", "sphere", "ball"]
LossName = Literal["cross_entropy", "margin"]
KeepName = Literal["last", "best"]


@dataclass(frozen=True)
class PGD(Attack):
    """Steps up the loss, each projected to the eps ball and then clamped to [0, 1], as in MadryLab/robustness.

    The defaults are paper 002's for ImageNet. Two things differ from MadryLab/robustness on purpose: the loss is
    summed over the batch, not averaged, so an image's result does not depend on the others; and restarts keep each
    image's worst case, where that code's byte mask keeps the last one.

    Attributes:
        norm: ``l2`` or ``linf``.
        eps: radius in [0, 1] pixel units: 3.0 in L2, 8 / 255 = 0.0314 in Linf.
        step_size: length of a step, in the units of eps.
        steps: number of steps, each one forward and one backward pass.
        start: where the search starts: ``none``, at the clean image; ``sphere`` (L2 alone), at distance eps in a
            random direction, as MadryLab/robustness does; ``ball``, uniform in the volume of the ball, as Foolbox 3
            does. Random starts are clamped to [0, 1].
        loss: ``cross_entropy``, or ``margin``, the highest wrong logit minus the right one.
        keep: ``last`` returns where the last step leads; ``best`` the point of highest loss on the way, the start
            included, for one more forward pass.
        restarts: searches from different random starts. A misclassified result wins over others, then the highest
            loss, both scored in fp32; more than one costs a forward pass each for it.

    Raises:
        UserError: a setting is out of range, or two do not fit together.

    Example:
        >>> attack = PGD(norm="linf", eps=4 / 255, step_size=1 / 255, steps=10)
        >>> attack.with_eps(8 / 255).step_size * 255
        2.0
    """

    norm: NormName = "l2"
    eps: float = 3.0
    step_size: float = 0.5
    steps: int = 7
    start: StartName = "none"
    loss: LossName = "cross_entropy"
    keep: KeepName = "last"
    restarts: int = 1

    def __post_init__(self) -> None:
        _check_choice("norm", self.norm, NormName)
        _check_choice("start", self.start, StartName)
        _check_choice("loss", self.loss, LossName)
        _check_choice("keep", self.keep, KeepName)
        _check_size("eps", self.eps, self.norm)
        _check_size("step_size", self.step_size, self.norm)
        if self.steps < 0:
            raise UserError(f"PGD steps is {self.steps}: give 0 or more.")
        if self.restarts < 1:
            raise UserError(f"PGD restarts is {self.restarts}: give 1 or more; 1 is a single search.")
        if self.restarts > 1 and self.start == "none":
            raise UserError(
                f"PGD restarts is {self.restarts} but every search would start at the clean image: set start to ball, "
                "or to sphere in L2."
            )
        if self.norm == "linf" and self.start == "sphere":
            raise UserError("PGD start sphere is for norm l2: in linf use ball, uniform in [-eps, eps].")

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, *, generator: Generators | None = None
    ) -> AttackResult:
        """Attack and score; see ``Attack``. Waits for the accelerator twice, before and after the search.

        ``AttackResult.steps`` is ``steps * restarts`` for every image: nothing stops early.
        """
        check_batch(images, labels)
        check_range(images)
        attacked = self.perturb(model, images, labels, generator=generator)
        with torch.inference_mode(False), frozen(model):
            verdict = score(model, attacked, labels, LOSSES[self.loss])
            spent = torch.full_like(labels, self.steps * self.restarts)
        check_numbers(verdict.loss)
        return AttackResult(attacked, verdict.success, verdict.loss, spent)

    def perturb(self, model: Model, images: Tensor, labels: Tensor, *, generator: Generators | None = None) -> Tensor:
        """Return the adversarial images; see ``Attack``.

        With one search that keeps its last iterate this is ``steps`` forward and backward passes and nothing else,
        and never waits for an accelerator. So the range of the pixels is checked on the CPU alone.
        """
        self._check_call(images, labels, generator)
        with torch.inference_mode(False), torch.enable_grad(), frozen(model):
            # Autograd refuses to save inference tensors, which Lightning's test loop hands out; copies are ordinary.
            ball = Ball(images.detach().clamp(0, 1), L2() if self.norm == "l2" else Linf(), self.eps)
            labels = labels.clone()
            attacked = self._search(model, labels, ball, generator)
            if self.restarts > 1:
                worst = score(model, attacked, labels, LOSSES[self.loss])
                for _ in range(self.restarts - 1):
                    again = self._search(model, labels, ball, generator)
                    found = score(model, again, labels, LOSSES[self.loss])
                    attacked, worst = _worse(attacked, worst, again, found)
        return attacked

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values; eps and step size are in [0, 1] pixel units."""
        return {
            "name": "PGD",
            "norm": self.norm,
            "eps": float(self.eps),
            "step_size": float(self.step_size),
            "steps": self.steps,
            "start": self.start,
            "loss": self.loss,
            "keep": self.keep,
            "restarts": self.restarts,
            "targeted": False,
        }

    def with_eps(self, eps: float) -> Self:
        """Return this attack at another radius, the step size scaled in proportion; see ``Attack``."""
        if self.eps == 0:
            raise UserError("PGD at eps 0 has no step size in proportion to eps: derive the sweep from a positive eps.")
        return replace(self, eps=eps, step_size=self.step_size * (eps / self.eps))

    def _search(self, model: Model, labels: Tensor, ball: Ball, generator: Generators | None) -> Tensor:
        loss = LOSSES[self.loss]
        search = last_iterate if self.keep == "last" else best_iterate
        start = self._start(ball, generator)
        return search(lambda images: loss(model(images), labels), start, ball, self.step_size, self.steps)

    def _start(self, ball: Ball, generator: Generators | None) -> Tensor:
        if generator is None or self.start == "none":
            return ball.clean
        if self.start == "sphere":
            offset = L2().sphere(ball.clean, self.eps, generator)
        else:
            offset = ball.norm.ball(ball.clean, self.eps, generator)
        return (ball.clean + offset).clamp(0, 1)

    def _check_call(self, images: Tensor, labels: Tensor, generator: Generators | None) -> None:
        check_batch(images, labels)
        if images.device.type == "cpu":
            check_range(images)
        if self.start != "none" and generator is None:
            raise UserError(f"PGD start {self.start} needs random numbers: pass a torch.Generator, or one an image.")
        diameter = L2().diameter(images.shape[1:])
        if self.norm == "l2" and self.eps > diameter:
            raise UserError(
                f"L2 eps {self.eps:g} is beyond {diameter:.4g}, the largest distance of two images of shape "
                f"{list(images.shape[1:])}: give eps in [0, 1] pixel units, such as {self.eps:g}/255 = "
                f"{self.eps / 255:.3g}."
            )


def _worse(first: Tensor, first_score: Score, second: Tensor, second_score: Score) -> tuple[Tensor, Score]:
    """Choose for each image the second search's result where only it succeeds, or where its loss alone is higher."""
    only = second_score.success & ~first_score.success
    higher = (second_score.success == first_score.success) & (second_score.loss > first_score.loss)
    second_wins = only | higher
    images = torch.where(second_wins.view(-1, 1, 1, 1), second, first)
    chosen = Score(
        success=first_score.success | second_score.success,
        loss=torch.where(second_wins, second_score.loss, first_score.loss),
    )
    return images, chosen


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UserError(f"PGD {name} is {value!r}: choose one of {', '.join(get_args(choices))}.")


def _check_size(name: str, value: float, norm: NormName) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"PGD {name} is {value}: give a finite number, 0 or more, in [0, 1] pixel units.")
    if norm == "linf" and value > 1:
        raise UserError(
            f"PGD {name} is {value:g} in linf, where 1 is black to white: did you mean {value:g}/255 = "
            f"{value / 255:.5f}?"
        )
