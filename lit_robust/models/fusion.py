"""A standard and a robust network as one: fused by a weight, or by whichever is more confident.

Chen, Agarwal & Nguyen 2020, section 5, propose it. What comes out is a network like any other: it is tested by any
test, and attacked through the fused gradient.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.core.errors import UserError, check_choice
from lit_robust.models.network import build_from

Rule = Literal["weight", "confidence"]
WEIGHTS = tuple(step / 20 for step in range(21))
"""Shares of the standard network that are tried on validation images."""


class Fusion(nn.Module):
    """Images in [0, 1] to log-probabilities of two networks together, so that a softmax gives the probabilities.

    Args:
        standard: images in [0, 1] to logits.
        robust: likewise, of the same classes.
        rule: ``weight``, the mean of the two's probabilities; ``confidence``, those of the network whose highest
            probability is higher, the standard one's where both are equal.
        weight: share of the standard network in the mean, 0 to 1: 1 is the standard network itself, 0 the robust one.

    Raises:
        UserError: a setting is not one of these.
    """

    # Each part normalises by itself; `build_classifier` reads what it must do before.
    pretrained_cfg: Mapping[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def __init__(self, standard: nn.Module, robust: nn.Module, rule: Rule = "weight", weight: float = 0.5) -> None:
        super().__init__()
        check_choice("rule", rule, get_args(Rule))
        check_weight(weight)
        self.standard, self.robust, self.rule, self.weight = standard, robust, rule, weight

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1]."""
        if self.rule == "weight" and self.weight in (0, 1):
            return F.log_softmax((self.standard if self.weight else self.robust)(images), 1)
        ours, theirs = self._both(images)
        if self.rule == "weight":
            return fused(ours, theirs, self.weight)
        return torch.where(more_confident(ours, theirs)[:, None], theirs, ours)

    def decided(self, images: Tensor) -> Tensor:
        """Tell for each image whether the robust network is the more confident one, bool ``[B]``."""
        return more_confident(*self._both(images))

    def _both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        ours, theirs = (F.log_softmax(part(images), 1) for part in (self.standard, self.robust))
        _check_alike(ours, theirs)
        return ours, theirs


def _check_alike(ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise UserError(f"The networks have {ours.shape[1]} and {theirs.shape[1]} classes: fuse two of the same ones.")


def fused(standard: Tensor, robust: Tensor, weight: float) -> Tensor:
    """Return the logarithm of ``weight`` times one's probabilities plus ``1 - weight`` times the other's.

    Args:
        standard: log-probabilities ``[B, num_classes]``.
        robust: likewise.
        weight: 0 to 1, the first one's share; at 0 and 1 the result is the other one, or this one, itself.
    """
    _check_alike(standard, robust)
    share = torch.tensor([weight, 1 - weight], device=standard.device).log()
    return (
        torch.logaddexp(standard + share[0], robust + share[1]) if 0 < weight < 1 else (robust, standard)[int(weight)]
    )


def more_confident(standard: Tensor, robust: Tensor) -> Tensor:
    """Tell where the second of two log-probabilities ``[B, num_classes]`` has the higher maximum, bool ``[B]``."""
    return robust.amax(1) > standard.amax(1)


def best_weight(counts: Mapping[float, int]) -> float:
    """Return the weight of most right answers; of a tie the middle one, the lower of two."""
    best = sorted(weight for weight, count in counts.items() if count == max(counts.values()))
    return best[(len(best) - 1) // 2]


def check_weight(weight: float) -> None:
    """Raise a UserError unless a weight is a number from 0 to 1."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise UserError(f"weight is {weight!r}: give the standard network's share, 0 to 1.")


def fuse(
    num_classes: int,
    standard: Mapping[str, Any],
    robust: Mapping[str, Any],
    rule: Rule = "weight",
    weight: float = 0.5,
) -> Fusion:
    """Build a fused network; `--model.network.name lit_robust.models.fusion:fuse` makes any test use it.

    Args:
        num_classes: of both.
        standard: settings of a ``Network``: name, weights and more.
        robust: likewise.
        rule: see ``Fusion``.
        weight: see ``Fusion``.

    Raises:
        UserError: a setting is not one of a network's, or a network cannot be built.
    """
    first, second = build_from("standard", standard, num_classes), build_from("robust", robust, num_classes)
    return Fusion(first, second, rule, weight)
