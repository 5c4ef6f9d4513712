"""Standard training: cross-entropy on clean images."""

from torch import Tensor

from lit_robust.batch import Batch
from lit_robust.models import Network
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation


class StandardModule(ClassifierModule):
    """A classifier trained on clean images; also the module to test any given network with.

    Args:
        network: which network, with which weights.
        optimisation: optimiser, schedule and label smoothing; used by ``fit`` alone.
    """

    def __init__(self, network: Network = Network(), optimisation: Optimisation = Optimisation()) -> None:
        super().__init__(network, optimisation)
        self.keep_hyperparameters(network=network, optimisation=optimisation)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the clean batch."""
        logits = self.model(batch.image)
        loss = self.loss(logits, batch.label)
        self.log_training(loss, logits, batch.label)
        return loss
