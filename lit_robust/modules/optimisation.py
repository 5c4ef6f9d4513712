"""The optimiser, any of torch's, and its learning rate over the course of training."""

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lit_robust.core.errors import UserError, check_choice

SCHEDULES = ("constant", "step", "cosine", "one_cycle")
ONE_CYCLE_RISE = 0.3  # Share of training during which the one-cycle rate rises, as in torch's OneCycleLR.
SGD = "torch.optim.SGD"
OPTIMIZER_PATH, SCHEDULE_PATH = "torch.optim.", "torch.optim.lr_scheduler."


@dataclass(frozen=True)
class Optimisation:
    """An optimiser of torch's, a rate schedule that moves every step, and label smoothing.

    The defaults are the 90-epoch ImageNet recipe of MadryLab/robustness and of torchvision's reference training. Class
    paths are those of ``torch.optim`` alone, and arguments plain values: a checkpoint holds them, and runs nothing.

    Attributes:
        learning_rate: the highest rate, for the whole batch over all ranks.
        momentum: of SGD, 0 to 1; other optimisers have theirs in ``optimizer_args``.
        weight_decay: L2 penalty, or what the optimiser makes of it.
        nesterov: Nesterov's form of SGD's momentum.
        schedule: ``step`` divides at fixed epochs, ``cosine`` falls to zero over training, ``one_cycle`` rises
            linearly for 30 % of training and falls by a cosine to zero, ``constant`` stays; or a class path, such as
            ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts``, which counts steps of the optimiser.
        step_epochs: epochs between two divisions of ``step``.
        step_factor: what ``step`` multiplies the rate by.
        warmup_epochs: epochs of linear rise from zero, on top of any schedule but ``one_cycle``.
        label_smoothing: share of the target spread over all classes, 0 to 1.
        norm_decay: whether biases and normalisation layers decay too, as in the papers' recipes.
        optimizer: class path, such as ``torch.optim.AdamW``.
        optimizer_args: further arguments of the optimiser, such as ``{betas: [0.9, 0.95]}``.
        schedule_args: arguments of a schedule that is a class path, such as ``{T_0: 1000}``.
        body_rate: what the rate of all but the last layer is multiplied by, to fine-tune; 0 freezes it, with its batch
            statistics.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    schedule: str = "step"
    step_epochs: int = 30
    step_factor: float = 0.1
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    norm_decay: bool = True
    optimizer: str = SGD
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    schedule_args: dict[str, Any] = field(default_factory=dict)
    body_rate: float = 1.0

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
        if not 0 <= self.body_rate < math.inf:
            raise UserError(f"body_rate is {self.body_rate}: give 0, to freeze all but the last layer, or more.")
        check_choice("optimizer", self.optimizer, optimizers())
        check_choice("schedule", self.schedule, (*SCHEDULES, *schedules()))
        if self.schedule in SCHEDULES and self.schedule_args:
            raise UserError(f"schedule_args are given, and schedule {self.schedule} takes none: name a class path.")
        if self.optimizer != SGD or self.schedule not in SCHEDULES or self.optimizer_args:
            # Not of the defaults, as torch imports its compiler for a first optimiser.
            build_schedule(self, build_optimizer(self, [nn.Parameter(torch.zeros(2, 2))]))


def optimizers() -> dict[str, type[Optimizer]]:
    """Return torch's optimisers by their class paths."""
    return _classes(torch.optim, OPTIMIZER_PATH, Optimizer, (Optimizer,))


def schedules() -> dict[str, type[LRScheduler]]:
    """Return torch's schedules by their class paths, but those of a metric or of other schedules."""
    module = torch.optim.lr_scheduler
    others = (LRScheduler, ReduceLROnPlateau, LambdaLR, module.MultiplicativeLR, module.ChainedScheduler)
    return _classes(module, SCHEDULE_PATH, LRScheduler, (*others, module.SequentialLR))


def _classes(module: Any, path: str, base: type, without: tuple[type, ...]) -> dict[str, Any]:
    found = {name: value for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)}
    return {path + name: value for name, value in found.items() if value not in without and name[0] != "_"}


def rate_factor(settings: Optimisation, epoch: float, epochs: float) -> float:
    """Return what the learning rate is multiplied by.

    Args:
        settings: the schedule, one of ours.
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
        return warmup_factor(settings, epoch)
    if settings.schedule == "step":
        return float(settings.step_factor ** math.floor(epoch / settings.step_epochs))
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def warmup_factor(settings: Optimisation, epoch: float) -> float:
    """Return the warm-up's share of the rate, 0 to 1, after ``epoch`` epochs."""
    return min(1.0, epoch / settings.warmup_epochs) if settings.warmup_epochs else 1.0


def head_of(network: nn.Module, num_classes: int) -> nn.Module:
    """Return the last layer of a network: the last linear one, or convolution, that gives ``num_classes``.

    Raises:
        UserError: there is none.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    heads = [
        layer for layer in layers if num_classes == getattr(layer, "out_features", getattr(layer, "out_channels", 0))
    ]
    if not heads:
        raise UserError(
            f"The network has no linear layer or convolution of {num_classes} outputs, whose rate could differ from "
            "that of the others: leave body_rate at 1."
        )
    return heads[-1]


def build_optimizer(
    settings: Optimisation, parameters: Iterable[nn.Parameter], head: nn.Module | None = None
) -> Optimizer:
    """Return the optimiser of ``settings``; one-dimensional parameters decay only with ``norm_decay``.

    Args:
        settings: of the optimiser.
        parameters: all; those that a ``body_rate`` of 0 freezes are left out.
        head: the last layer, whose rate is whole; null where all have it.

    Raises:
        UserError: the optimiser does not take the arguments, or not these parameters.
    """
    parameters = list(parameters)
    own = None if head is None else {id(parameter) for parameter in head.parameters()}
    groups = []
    for is_body in (False, True):
        part = [p for p in parameters if is_body == (own is not None and id(p) not in own)]
        rate = settings.body_rate if is_body else 1.0
        decayed = [p for p in part if settings.norm_decay or p.ndim > 1]
        free = [p for p in part if not settings.norm_decay and p.ndim <= 1]
        shared: dict[str, Any] = {"lr": settings.learning_rate * rate} if is_body else {}
        both = ({"params": decayed, **shared}, {"params": free, "weight_decay": 0.0, **shared})
        groups += [group for group in both if group["params"] and rate]
    kind = optimizers()[settings.optimizer]
    given: dict[str, Any] = {"lr": settings.learning_rate}
    if "weight_decay" in inspect.signature(kind).parameters:
        given["weight_decay"] = settings.weight_decay
    elif settings.weight_decay:
        raise UserError(f"weight_decay is {settings.weight_decay}, and {settings.optimizer} has none: set it to 0.")
    if settings.optimizer == SGD:
        given |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
    made: Optimizer = _made(kind, groups, given | settings.optimizer_args)
    return made


def build_schedule(settings: Optimisation, optimizer: Optimizer) -> LRScheduler | None:
    """Return the schedule of a class path; None for one of ours.

    Raises:
        UserError: the schedule does not take the arguments.
    """
    if settings.schedule in SCHEDULES:
        return None
    made: LRScheduler = _made(schedules()[settings.schedule], optimizer, settings.schedule_args)
    return made


def _made(kind: type, first: object, arguments: Mapping[str, Any]) -> Any:
    try:
        return kind(first, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{kind.__name__} does not take {', '.join(f'{name} {value}' for name, value in arguments.items())} "
            f"({error}): give the arguments that torch's documentation names."
        ) from error
