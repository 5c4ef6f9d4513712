"""Signs that AutoAttack's verdict may be too good: counts, so that those of several batches add up."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lit_robust.attacks.attack import Model
from lit_robust.attacks.objective import clean_logits

# Both tolerances are those of ``checks.py`` of fra31/auto-attack.
SAME = 1e-4
PROBABILITY = 1e-5
# Share of all images.
MOST_GAINED_BY_SQUARE = 0.002


@dataclass(frozen=True)
class Flags:
    """How many images of a batch show each sign; ``+`` adds up batches.

    Attributes:
        images: how many there were, ``unattacked`` included.
        randomised: whose logits, scaled to length 1, differ by more than 1e-4 between two fp32 forward passes, or whose
            class does; not looked at by version ``rand``, which is made for such networks.
        probabilities: whose logits are in [0, 1] and sum to 1.
        zero_gradient: where the gradient of a loss other than cross-entropy is zero at the start of a search.
        gained_by_square: broken by Square after every search with gradients had failed.
        unattacked: known to be broken before, so not given to the attack and not looked at for any sign.
    """

    images: int = 0
    randomised: int = 0
    probabilities: int = 0
    zero_gradient: int = 0
    gained_by_square: int = 0
    unattacked: int = 0

    def __add__(self, other: "Flags") -> "Flags":
        return Flags(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def sentences(self) -> list[str]:
        """Return what is to be feared, one sentence a sign; empty where there is none.

        The signs and their limits are those of ``flags_doc.md`` of fra31/auto-attack.
        """
        found = []
        seen = self.images - self.unattacked
        if self.randomised:
            found.append(
                f"The network answers {self.randomised} of {seen} images differently each time, which misleads "
                "searches that take it for a fixed function: use AutoAttack version rand."
            )
        if seen and self.probabilities == seen:
            found.append(
                "The network gives probabilities, whose gradients vanish where it is sure: attack its logits, before "
                "the softmax."
            )
        if self.zero_gradient:
            found.append(
                f"The gradient is zero at the start of a search for {self.zero_gradient} of {seen} images, so "
                "the network may hide it: attack a differentiable stand-in, or trust Square alone."
            )
        if self.gained_by_square > MOST_GAINED_BY_SQUARE * self.images:
            found.append(
                f"Square broke {self.gained_by_square} of all {self.images} images after they had withstood all "
                "gradients, so these may be masked: run Square with more queries, or an attack made for this network."
            )
        return found


def count_randomised(model: Model, images: Tensor, logits: Tensor) -> int:
    """Return how many images another fp32 forward pass answers otherwise than ``logits`` ``[B, num_classes]``."""
    again = clean_logits(model, images)
    difference = torch.linalg.vector_norm(_unit(again) - _unit(logits), dim=1)
    return int(((difference > SAME) | (again.argmax(1) != logits.argmax(1))).sum())


def count_probabilities(logits: Tensor) -> int:
    """Return how many rows of ``logits`` ``[B, num_classes]`` are in [0, 1] and sum to 1."""
    inside = (logits > -PROBABILITY).all(1) & (logits < 1 + PROBABILITY).all(1)
    return int((inside & ((logits.sum(1) - 1).abs() < PROBABILITY)).sum())


def _unit(logits: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    return logits / (length + 1e-10)
