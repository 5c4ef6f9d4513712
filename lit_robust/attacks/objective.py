"""What an attack wants of the logits: a loss to raise, and the answer that ends the search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_robust.attacks.attack import Model
from lit_robust.attacks.draws import Generators, draw_uniform
from lit_robust.attacks.losses import LOSSES, cross_entropy, divergence, dlr_targeted
from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of
from lit_robust.core.precision import full_precision

LossName = Literal["cross_entropy", "margin", "dlr", "kl"]
TargetName = Literal["none", "random", "least_likely"]


def _towards(logits: Tensor, _labels: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(logits, targets)


def _lead(logits: Tensor, _labels: Tensor, targets: Tensor) -> Tensor:
    return -LOSSES["margin"](logits, targets)


TARGETED: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": _towards,
    "margin": _lead,
    "dlr": dlr_targeted,
}
"""Logits ``[B, num_classes]``, labels ``[B]`` and targets ``[B]`` to values ``[B]``, higher nearer to the target."""


@dataclass(frozen=True)
class Objective:
    """The loss of each image of a batch, and when its search is over.

    Attributes:
        name: which loss.
        labels: int64 ``[B]``, the true classes.
        targets: int64 ``[B]``, the classes to be mistaken for; null where any mistake will do.
        clean: ``[B, num_classes]``, log-probabilities of the clean images, which loss ``kl`` compares with.
    """

    name: LossName
    labels: Tensor
    targets: Tensor | None = None
    clean: Tensor | None = None

    def loss(self, logits: Tensor) -> Tensor:
        """Return the float32 values ``[B]`` that the attack raises."""
        if self.targets is not None:
            return TARGETED[self.name](logits, self.labels, self.targets)
        if self.clean is not None:
            return divergence(logits, self.clean)
        return LOSSES[self.name](logits, self.labels)

    def reached(self, answers: Tensor) -> Tensor:
        """Tell for each of the classes ``[B]`` that the network says whether it is what the attack wants."""
        return answers != self.labels if self.targets is None else answers == self.targets

    def select(self, chosen: Tensor) -> "Objective":
        """Return the objective of the images that ``chosen``, bool ``[B]`` or int64 rows, names."""
        targets = None if self.targets is None else self.targets[chosen]
        return Objective(self.name, self.labels[chosen], targets, None if self.clean is None else self.clean[chosen])


def random_targets(labels: Tensor, num_classes: int, generator: Generators) -> Tensor:
    """Return for each label another class, int64 ``[B]``, uniform over all others.

    Raises:
        UserError: there is no other class.
    """
    if num_classes < 2:
        raise UserError("A network of one class has no other to be mistaken for: attack one with two or more.")
    other = (draw_uniform(labels.shape, generator, labels.device) * (num_classes - 1)).long()
    return other + (other >= labels)


def clean_logits(model: Model, images: Tensor) -> Tensor:
    """Return fp32 logits of clean images, from a forward pass without gradients; the mode is the caller's business."""
    with torch.no_grad(), full_precision(images.device.type):
        return logits_of(model(images)).float()
