"""Signs that an attack's verdict may be too good: counts, so that those of several batches add up."""

from dataclasses import dataclass, fields

from torch import Tensor

# The tolerance of ``checks.py`` of fra31/auto-attack.
PROBABILITY = 1e-5
# Share of all images.
MOST_GAINED_BY_SQUARE = 0.002


@dataclass(frozen=True)
class Flags:
    """How many images of a batch show each sign; ``+`` adds up batches.

    Attributes:
        images: how many there were, ``unattacked`` included.
        randomised: whose logits, scaled to length 1, differ by more than 1e-4 between two fp32 forward passes, or whose
            class does; looked at by `AutoAttack` alone, and not by its version ``rand``, which is for such networks.
        probabilities: whose logits are in [0, 1] and sum to 1.
        zero_gradient: where the gradient was zero or not finite, at the start of a search or on the way.
        unmoved: which withstood and of which every gradient was so, so that the attack never moved them.
        gained_by_square: broken by Square after every search with gradients had failed; looked at by `AutoAttack`.
        unattacked: known to be broken before, so not given to the attack and not looked at for any sign.
    """

    images: int = 0
    randomised: int = 0
    probabilities: int = 0
    zero_gradient: int = 0
    unmoved: int = 0
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
                f"The gradient was zero or not finite for {self.zero_gradient} of {seen} images, of which "
                f"{self.unmoved} withstood and never moved, so the network may hide it and look too robust: attack a "
                "differentiable stand-in (a memory's threat_model memory-surrogate), or use Square."
            )
        if self.gained_by_square > MOST_GAINED_BY_SQUARE * self.images:
            found.append(
                f"Square broke {self.gained_by_square} of all {self.images} images after they had withstood all "
                "gradients, so these may be masked: run Square with more queries, or an attack made for this network."
            )
        return found


def are_probabilities(logits: Tensor) -> Tensor:
    """Return which rows of ``logits`` ``[B, num_classes]`` are in [0, 1] and sum to 1, bool ``[B]``."""
    inside = (logits > -PROBABILITY).all(1) & (logits < 1 + PROBABILITY).all(1)
    return inside & ((logits.sum(1) - 1).abs() < PROBABILITY)
