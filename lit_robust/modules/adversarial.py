"""Madry's adversarial training: cross-entropy on attacked images alone."""

from torch import Tensor

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.models import Network
from lit_robust.modules.attacking import AttackingModule, AttackSchedule
from lit_robust.modules.optimisation import Optimisation


class AdversarialModule(AttackingModule):
    """A classifier trained on PGD adversarial examples of itself (Madry et al. 2018).

    The attack runs on the network in eval mode; the adversarial batch alone trains it and moves its batch norm, as
    in MadryLab/robustness (``train.py``). The attack's defaults are L2, eps 3 and 7 steps, as paper 002's for ImageNet.

    Args:
        network: which network, with which weights.
        optimisation: optimiser, schedule and label smoothing; used by ``fit`` alone.
        attack: the attack that makes the training images; what a *test* attacks with is its callback's.
        schedule: the attack's warm-up, and validation under attack.
    """

    def __init__(
        self,
        network: Network = Network(),
        optimisation: Optimisation = Optimisation(),
        attack: PGD = PGD(),
        schedule: AttackSchedule = AttackSchedule(),
    ) -> None:
        super().__init__(network, optimisation, attack, schedule)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the attacked batch."""
        logits = self.model(self.perturb(batch, batch_idx))
        loss = self.loss(logits, batch.label)
        self.log_training(loss, logits, batch.label)
        return loss
