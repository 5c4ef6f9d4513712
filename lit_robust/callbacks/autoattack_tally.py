"""What AutoAttack says beside its verdicts, summed over batches and ranks."""

from dataclasses import astuple
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor

from lit_robust.attacks import Attack, AttackResult, AutoAttack, AutoAttackResult, Flags


class AutoAttackTally:
    """Counts which attack broke how many images, and the signs that a verdict may be too good.

    Results of other attacks leave it empty.

    Args:
        attack: whose results are counted.
        device: where to count, that of the results.
    """

    def __init__(self, attack: Attack, device: torch.device) -> None:
        self.names = ("clean", *attack.attacks()) if isinstance(attack, AutoAttack) else ()
        self.broken_by = torch.zeros(len(self.names), dtype=torch.int64, device=device)
        self.flags = torch.zeros(len(astuple(Flags())), dtype=torch.int64, device=device)

    def add(self, result: AttackResult) -> None:
        """Count a batch."""
        if isinstance(result, AutoAttackResult):
            broken = result.code[result.code >= 0]
            self.broken_by += torch.bincount(broken, minlength=len(self.broken_by))
            self.flags += torch.tensor(astuple(result.flags), device=self.flags.device)

    def reduced(self, strategy: Strategy) -> dict[str, Any]:
        """Return what belongs into a result's protocol; every rank calls this. Empty without AutoAttack.

        Returns:
            ``broken_by``, attack to images; ``flags``, sign to images; ``warnings``, a sentence a sign.
        """
        if not self.names:
            return {}
        sums: list[Tensor] = [strategy.reduce(part.clone(), reduce_op="sum") for part in (self.broken_by, self.flags)]
        broken_by, numbers = (part.tolist() for part in sums)
        return {
            "broken_by": dict(zip(self.names, broken_by, strict=True)),
            "flags": dict(zip(Flags.__dataclass_fields__, numbers, strict=True)),
            "warnings": Flags(*numbers).sentences(),
        }
