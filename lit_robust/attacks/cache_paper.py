"""The attack of the episodic-memory paper, as its code ran it on Foolbox 1.8."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from lit_robust.attacks.ascent import Ball, ascent_step, first_success
from lit_robust.attacks.attack import (
    Attack,
    AttackResult,
    Model,
    as_batch,
    check_eps,
    check_numbers,
    check_range,
    check_step,
    clean_logits,
    frozen,
    score,
    within_classes,
)
from lit_robust.attacks.losses import Objective, random_targets
from lit_robust.attacks.norms import Generators, Linf
from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError, check_choice, check_count
from lit_robust.core.folding import folded
from lit_robust.core.layout import in_fast_layout

EpsUnit = Literal["range", "image_maximum"]


@dataclass(frozen=True)
class CachePaperAttack(Attack):
    """Targeted PGD in linf that ends at its first success and gives back the clean image where it has none.

    Orhan and Lake (2019) print "PGD, 10 iterations, step 2/225"; its code (eminorhan/robust-vision, on Foolbox 1.8's
    ``RandomStartProjectedGradientDescentAttack``) is this, where it differs from `PGD`:

    - the target is drawn uniformly from the wrong classes, and an image counts as broken only by reaching it;
    - the start is uniform in the ball and *not* clamped to [0, 1] before the first gradient;
    - every iterate after the first step counts, and the search ends at the first that reaches the target;
    - where none does, Foolbox returns nothing and the scripts evaluate the clean image, which the network gets right.

    So accuracies under it are higher than under `PGD` without a target. The step of 2/255 is the code's, and does not
    shrink with eps: 10 steps travel 0.078 from the start, less than the paper's larger radii.

    Attributes:
        eps: radius, in the unit of ``eps_unit``; the paper's are 0.01, 0.02, 0.04, 0.06, 0.08 and 0.1.
        step_size: length of a step, in [0, 1] pixel units; at most 2 eps.
        steps: number of steps at most.
        eps_unit: ``range``, eps is in [0, 1] pixel units as in the code; ``image_maximum``, eps is a share of the
            image's own largest value, as the text defines it. They agree where some pixel is fully bright.

    Raises:
        UserError: a setting is out of range.
    """

    eps: float = 0.06
    step_size: float = 2 / 255
    steps: int = 10
    eps_unit: EpsUnit = "range"
    norm: Literal["linf"] = "linf"

    def __post_init__(self) -> None:
        check_choice("CachePaperAttack eps_unit", self.eps_unit, get_args(EpsUnit))
        check_choice("CachePaperAttack norm", self.norm, ("linf",))
        check_eps("CachePaperAttack eps", self.eps, "linf")
        check_step("CachePaperAttack step_size", self.step_size, self.eps, "linf")
        check_count("CachePaperAttack steps", self.steps, 1)

    def __call__(
        self, model: Model, images: Numbers, labels: Numbers, *, generator: Generators | None = None
    ) -> AttackResult:
        """Attack and score; see ``Attack``. Waits for the accelerator at each step.

        Success is what the scripts count: the returned image is misclassified. The loss is that of reaching the
        target.
        """
        images, labels = as_batch(model, images, labels)
        check_range(images)
        if generator is None:
            raise UserError("CachePaperAttack draws targets and starts: pass a torch.Generator, or one an image.")
        with torch.inference_mode(False), torch.enable_grad(), frozen(model), folded(model):
            clean = images.detach().clamp(0, 1)
            labels = labels.clone()
            if not len(labels):
                none = labels.new_zeros(0)
                return AttackResult(clean, none.bool(), none.float(), none, none, none.bool())
            model = within_classes(in_fast_layout(model, images.device.type), labels, "label")
            radius = self.eps
            ball = Ball(clean, Linf(), radius if self.eps_unit == "range" else radius * clean.amax((1, 2, 3), True))
            targets = random_targets(labels, clean_logits(model, clean[:1]).shape[1], generator)
            objective = Objective("cross_entropy", labels, targets)
            start = clean + ball.norm.ball(clean, ball.eps, generator)
            # The start itself is never looked at, so the first step stands outside the search for a success.
            moved, first = ascent_step(model, objective.loss, start, ball, self.step_size)
            found = first_success(model, objective, moved, ball, self.step_size, self.steps - 1)
            attacked = torch.where(found.reached.view(-1, 1, 1, 1), found.images, clean)
            verdict = score(model, attacked, labels, lambda logits, _: objective.loss(logits))
        check_numbers(verdict.loss)
        return AttackResult(
            attacked,
            verdict.success,
            verdict.loss,
            found.steps + 1,
            found.vanished + first.vanished,
            verdict.probabilities,
        )

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values."""
        settings = super().protocol()
        return settings | {
            "fixed_step_size": settings.pop("step_size"),
            "start": "ball, not clamped",
            "loss": "cross_entropy",
            "target": "random",
            "verdict": "broken at any step that reaches the target; the clean image where none does",
        }
