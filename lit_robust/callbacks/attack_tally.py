"""What an attack says beside its verdicts, summed over batches and ranks."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor

from lit_robust.attacks import Attack, AttackResult, AutoAttack, AutoAttackResult, Flags

CLEAN = "clean"
SMALLER_EPS = "smaller eps"


class AttackTally:
    """Counts the signs that a verdict may be too good, and of AutoAttack what broke how many images.

    Its shares are of all images, so those that were broken without this attack belong into it.

    Args:
        attack: whose results are counted.
        causes: what else breaks images, in the order of the counts: ``CLEAN`` and, in a sweep, ``SMALLER_EPS``.
        device: where to count, that of the results.
    """

    def __init__(self, attack: Attack, causes: Sequence[str], device: torch.device) -> None:
        self.causes = tuple(causes)
        self.attacks = tuple(attack.attacks()) if isinstance(attack, AutoAttack) else ()
        self.broken_by = torch.zeros(len(self.causes) + len(self.attacks), dtype=torch.int64, device=device)
        self.flags = torch.zeros(len(astuple(Flags())), dtype=torch.int64, device=device)

    def add(self, result: AttackResult) -> None:
        """Count a batch that was attacked."""
        self.flags += torch.tensor(astuple(result.flags), device=self.flags.device)
        if isinstance(result, AutoAttackResult):
            # A result's codes count from clean errors, then the attacks.
            code = result.code[result.code >= 0]
            place = torch.where(code == 0, self.causes.index(CLEAN), code - 1 + len(self.causes))
            self.broken_by += torch.bincount(place, minlength=len(self.broken_by))

    def add_broken(self, cause: str, count: int) -> None:
        """Count images that were broken already and not attacked."""
        self.broken_by[self.causes.index(cause)] += count
        self.flags += torch.tensor(astuple(Flags(images=count, unattacked=count)), device=self.flags.device)

    def reduced(self, strategy: Strategy) -> tuple[dict[str, Any], list[str]]:
        """Return what belongs into a result's protocol, and its warnings, a sentence a sign; every rank calls this.

        Returns:
            The protocol's part is ``flags``, sign to images, and of AutoAttack ``broken_by``, cause or attack to
            images.
        """
        sums: list[Tensor] = [strategy.reduce(part.clone(), reduce_op="sum") for part in (self.broken_by, self.flags)]
        broken_by, numbers = (part.tolist() for part in sums)
        protocol: dict[str, Any] = {"flags": dict(zip(Flags.__dataclass_fields__, numbers, strict=True))}
        if self.attacks:
            protocol["broken_by"] = dict(zip((*self.causes, *self.attacks), broken_by, strict=True))
        return protocol, Flags(*numbers).sentences()
