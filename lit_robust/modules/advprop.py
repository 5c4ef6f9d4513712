"""AdvProp: trained on clean and attacked images, each through batch norms of their own (Xie et al. 2020)."""

from torch import Tensor

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.models import Network
from lit_robust.models.auxiliary_norm import add_auxiliary_norms, auxiliary_branch
from lit_robust.modules.adversarial import AttackingModule, AttackSchedule
from lit_robust.modules.optimisation import Optimisation


class AdvPropModule(AttackingModule):
    """A classifier trained on clean images through its main norms, and on attacked ones through auxiliary norms.

    Each step: the attack runs in eval mode through the auxiliary branch; the clean batch goes through the main branch,
    the attacked one through the auxiliary branch, both with the true labels and equal weights. Validation and test use
    the main branch alone, which is a plain network: a checkpoint can be tested as a `StandardModule`'s.

    A network without batch norm, such as AlexNet, has no branches to tell apart; both batches train all of it.

    Args:
        schedule: the attack's warm-up, and validation under attack, which goes through the main branch.
    """

    def __init__(
        self,
        network: Network = Network(),
        optimisation: Optimisation = Optimisation(),
        attack: PGD = PGD(),
        schedule: AttackSchedule = AttackSchedule(),
    ) -> None:
        super().__init__(network, optimisation, attack, schedule)
        add_auxiliary_norms(self.classifier.network)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean of the clean and the attacked batch's cross-entropy."""
        with auxiliary_branch(self.model):
            auxiliary = self.loss(self.model(self.perturb(batch, batch_idx)), batch.label)
        logits = self.model(batch.image)
        loss = (self.loss(logits, batch.label) + auxiliary) / 2
        self.log("train/auxiliary_loss", auxiliary.detach(), batch_size=len(batch))
        self.log_training(loss, logits, batch.label)
        return loss
