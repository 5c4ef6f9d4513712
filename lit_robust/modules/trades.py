"""TRADES: clean cross-entropy, and the divergence of the attacked answer from the clean one (Zhang et al. 2019)."""

import math

from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.models import Network
from lit_robust.modules.adversarial import AttackingModule, AttackSchedule
from lit_robust.modules.optimisation import Optimisation


class TradesModule(AttackingModule):
    """A classifier that trades clean accuracy against keeping its answer under attack.

    The loss is cross-entropy on clean images plus ``beta`` times KL(clean answer || attacked answer), as in equation 5
    of the paper and its public code (yaodongyu/TRADES). Gradients flow through both answers. The clean and the attacked
    batch go through the network one after the other, so each is normalised by statistics of its own, and both move
    batch norm's running ones, as there.

    Args:
        attack: raises the divergence, so its loss is ``kl``; validation attacks with it, too.
        beta: weight of the divergence, 0 or more; 6 in the paper's CIFAR-10 table, 1 for more clean accuracy.
    """

    def __init__(
        self,
        network: Network = Network(),
        optimisation: Optimisation = Optimisation(),
        attack: PGD = PGD(start="ball", loss="kl"),
        schedule: AttackSchedule = AttackSchedule(),
        beta: float = 6.0,
    ) -> None:
        if attack.loss != "kl" or not 0 <= beta < math.inf:
            raise UserError(
                f"TRADES with attack loss {attack.loss} and beta {beta}: its attack raises kl and beta is 0 or more."
            )
        super().__init__(network, optimisation, attack, schedule)
        self.beta = beta
        self.keep_hyperparameters(
            network=network, optimisation=optimisation, attack=attack, schedule=schedule, beta=beta
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return cross-entropy plus weighted divergence, both means over the batch."""
        attacked = self.perturb(batch, batch_idx)
        clean = self.model(batch.image)
        divergence = kl_divergence(clean, self.model(attacked))
        loss = self.loss(clean, batch.label) + self.beta * divergence
        self.log("train/divergence", divergence.detach(), batch_size=len(batch))
        self.log_training(loss, clean, batch.label)
        return loss


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Return the batch mean of KL(softmax ``logits`` || softmax ``other``), in nats; both ``[B, num_classes]``."""
    first, second = logits.float().log_softmax(1), other.float().log_softmax(1)
    return F.kl_div(second, first, log_target=True, reduction="batchmean")
