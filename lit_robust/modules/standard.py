"""Standard training: cross-entropy on clean images, or on images mixed in pairs."""

from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from lit_robust.core.batch import Batch
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.models import Network
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.mixing import Mixed, Mixing
from lit_robust.modules.optimisation import Optimisation


class StandardModule(ClassifierModule):
    """A classifier trained on clean images; also the module to test any given network with.

    Args:
        mixing: how training mixes images and labels in pairs: ``Mixup``, ``CutMix`` or ``MoEx``; null for not at all.
    """

    def __init__(
        self,
        network: Network = Network(),
        optimisation: Optimisation = Optimisation(),
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(network, optimisation)
        self.mixing = mixing
        self.keep_hyperparameters(network=network, optimisation=optimisation, mixing=_described(mixing))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the batch; of mixed images with both labels, by their shares."""
        if self.mixing is None:
            logits = self.model(batch.image)
            loss = self.loss(logits, batch.label)
        else:
            seed = stream_seed(run_seed(), "mixing", self.current_epoch, batch_idx, self.global_rank)
            mixed = self.mixing(self.classifier, batch.image, np.random.Generator(np.random.PCG64(seed)))
            logits = mixed.logits
            loss = self._mixed_loss(mixed, batch.label)
        self.log_training(loss, logits, batch.label)
        return loss

    def _mixed_loss(self, mixed: Mixed, labels: Tensor) -> Tensor:
        own, partners = self.loss(mixed.logits, labels), self.loss(mixed.logits, labels[mixed.partner])
        return mixed.share * own + (1 - mixed.share) * partners


def _described(mixing: Mixing | None) -> dict[str, Any] | None:
    """Return class and settings as plain values, in the form that a config has and a checkpoint is built from."""
    if mixing is None:
        return None
    return {"class_path": f"{type(mixing).__module__}.{type(mixing).__qualname__}", "init_args": asdict(mixing)}  # type: ignore[call-overload]
