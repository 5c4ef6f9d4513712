"""AdvProp: trained on clean and attacked images, each through batch norms of their own (Xie et al. 2020)."""

import torch
from torch import Tensor

from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.models import Network
from lit_robust.models.auxiliary_norm import add_auxiliary_norms, auxiliary_branch
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation
from lit_robust.seeds import run_seed, stream_seed


class AdvPropModule(ClassifierModule):
    """A classifier trained on clean images through its main norms, and on attacked ones through auxiliary norms.

    Each step: the attack runs in eval mode through the auxiliary branch; the clean batch goes through the main branch,
    the attacked one through the auxiliary branch, both with the true labels and equal weights. Validation and test use
    the main branch alone, which is a plain network: a checkpoint can be tested as a `StandardModule`'s.

    A network without batch norm, such as AlexNet, has no branches to tell apart; both batches train all of it.

    Args:
        network: which network, with which weights.
        optimisation: optimiser, schedule and label smoothing; used by ``fit`` alone.
        attack: the attack that makes the training images; what a *test* attacks with is its callback's.
    """

    def __init__(
        self,
        network: Network = Network(),
        optimisation: Optimisation = Optimisation(),
        attack: PGD = PGD(),
    ) -> None:
        super().__init__(network, optimisation)
        self.attack = attack
        add_auxiliary_norms(self.model.network)
        self.keep_hyperparameters(network=network, optimisation=optimisation, attack=attack)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean of the clean and the attacked batch's cross-entropy."""
        seed = stream_seed(run_seed(), "attack start, training", self.current_epoch, batch_idx, self.global_rank)
        generator = torch.Generator(self.device).manual_seed(seed)
        with auxiliary_branch(self.model):
            attacked = self.attack.perturb(self.model, batch.image, batch.label, generator=generator)
            auxiliary = self.loss(self.model(attacked), batch.label)
        logits = self.model(batch.image)
        loss = (self.loss(logits, batch.label) + auxiliary) / 2
        self.log("train/auxiliary_loss", auxiliary.detach(), batch_size=len(batch))
        self.log_training(loss, logits, batch.label)
        return loss
