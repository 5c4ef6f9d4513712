"""Stochastic gradient descent and its rate over the course of training."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import SGD

from lit_robust.core.errors import UserError

Schedule = Literal["constant", "step", "cosine", "one_cycle"]
ONE_CYCLE_RISE = 0.3  # Share of training during which the one-cycle rate rises, as in torch's OneCycleLR.


@dataclass(frozen=True)
class Optimisation:
    """SGD with momentum, a rate schedule that moves every step, and label smoothing.

    The defaults are the 90-epoch ImageNet recipe of MadryLab/robustness and of torchvision's reference training.

    Attributes:
        learning_rate: the highest rate, for the whole batch over all ranks.
        momentum: SGD momentum, 0 to 1.
        weight_decay: L2 penalty.
        nesterov: Nesterov's form of momentum.
        schedule: ``step`` divides at fixed epochs, ``cosine`` falls to zero over training, ``one_cycle`` rises
            linearly for 30 % of training and falls by a cosine to zero, ``constant`` stays.
        step_epochs: epochs between two divisions of ``step``.
        step_factor: what ``step`` multiplies the rate by.
        warmup_epochs: epochs of linear rise from zero, before any schedule but ``one_cycle``.
        label_smoothing: share of the target spread over all classes, 0 to 1.
        norm_decay: whether biases and normalisation layers decay too, as in the papers' recipes.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    schedule: Schedule = "step"
    step_epochs: int = 30
    step_factor: float = 0.1
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    norm_decay: bool = True

    def __post_init__(self) -> None:
        finite = 0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf
        if not finite or not 0 <= self.momentum < 1:
            raise UserError(
                f"learning_rate {self.learning_rate}, weight_decay {self.weight_decay} and momentum {self.momentum}: "
                "give a rate above 0, a decay of 0 or more, and a momentum from 0 to below 1."
            )
        if self.nesterov and self.momentum == 0:
            raise UserError(
                "nesterov is true and momentum 0: Nesterov's form is one of momentum, give both or neither."
            )
        if self.step_epochs < 1 or not 0 <= self.warmup_epochs < math.inf or not 0 <= self.label_smoothing <= 1:
            raise UserError(
                f"step_epochs {self.step_epochs}, warmup_epochs {self.warmup_epochs} and label_smoothing "
                f"{self.label_smoothing}: give 1 or more, 0 or more, and 0 to 1."
            )


def rate_factor(settings: Optimisation, epoch: float, epochs: float) -> float:
    """Return what the learning rate is multiplied by.

    Args:
        settings: the schedule.
        epoch: epochs trained so far, with the fraction of the current one.
        epochs: epochs of the whole training.
    """
    progress = min(epoch / epochs, 1.0) if epochs > 0 else 0.0
    if settings.schedule == "one_cycle":
        if progress < ONE_CYCLE_RISE:
            # torch's OneCycleLR starts at a 25th of the highest rate.
            return 0.04 + 0.96 * progress / ONE_CYCLE_RISE
        return 0.5 * (1 + math.cos(math.pi * (progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)))
    if epoch < settings.warmup_epochs:
        return epoch / settings.warmup_epochs
    if settings.schedule == "step":
        return float(settings.step_factor ** math.floor(epoch / settings.step_epochs))
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def build_optimizer(settings: Optimisation, parameters: Iterable[nn.Parameter]) -> SGD:
    """Return the SGD of ``settings``; one-dimensional parameters decay only with ``norm_decay``."""
    everything = list(parameters)
    decayed = [p for p in everything if settings.norm_decay or p.ndim > 1]
    free = [p for p in everything if not settings.norm_decay and p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    return SGD(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
