"""What every training scheme shares: network, loss, optimiser, schedule, accuracy and the test step."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision
from lit_robust.metrics import TopKAccuracy
from lit_robust.models import Classifier, Network, build_classifier, check_fit, weights_digest
from lit_robust.models.auxiliary_norm import without_auxiliary
from lit_robust.models.weights import LIGHTNING_PREFIX
from lit_robust.modules.optimisation import Optimisation, build_optimizer, rate_factor


class ClassifierModule(LightningModule, ABC):
    """A classifier with everything but the training scheme; a scheme adds its ``training_step``.

    Args:
        network: which network, with which weights.
        optimisation: optimiser, schedule and label smoothing; used by ``fit`` alone.
    """

    def __init__(self, network: Network, optimisation: Optimisation) -> None:
        super().__init__()
        self.network = network
        self.optimisation = optimisation
        self.model: nn.Module = build_classifier(network)
        self.validation_accuracy = TopKAccuracy(top_k=(1, 5))

    def keep_hyperparameters(self, **settings: Any) -> None:
        """Save the constructor's arguments as plain values, which a checkpoint can hold without running code.

        The two underscored names are LightningCLI's own: they let ``load_from_checkpoint`` build the nested settings
        again, whether the module was made by a config or in Python.
        """
        plain = {name: asdict(value) if is_dataclass(value) else value for name, value in settings.items()}  # type: ignore[arg-type]
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        instantiator = "pytorch_lightning.cli.instantiate_module"
        # Not logged from here: the command line logs the whole configuration.
        self.save_hyperparameters({"_class_path": path, "_instantiator": instantiator, **plain}, logger=False)

    @property
    def classifier(self) -> Classifier:
        """The network behind its normalisation."""
        assert isinstance(self.model, Classifier)
        return self.model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1]."""
        logits: Tensor = self.model(images)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the batch mean of the cross-entropy, with the settings' label smoothing."""
        return F.cross_entropy(logits, labels, label_smoothing=self.optimisation.label_smoothing)

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the scheme's loss, a scalar.

        Args:
            batch: float images in [0, 1], as many as the data's ``batch_size``; fewer only where the data's
                ``reading.on_error`` is ``skip`` and images of the batch could not be read, of which no copy is trained.
            batch_idx: the same number of batches for every rank.
        """

    def log_training(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Log the loss and the accuracy on what was trained; the progress bar shows both."""
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        values = {"train/loss": loss.detach(), "train/accuracy": accuracy}
        self.log_dict(values, prog_bar=True, batch_size=len(labels))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count correct answers on the valid samples, in the precision of training; a test scores in fp32."""
        logits = self.model(batch.image)
        self.validation_accuracy.update(logits[batch.valid], batch.label[batch.valid])

    def on_validation_epoch_end(self) -> None:
        """Log ``val/top1`` and ``val/top5``, exact over all ranks."""
        top1, top5 = self.validation_accuracy.compute()
        self.validation_accuracy.reset()
        # Every rank has the same value: of equal ones the largest is each, where a mean may be rounded.
        self.log("val/top1", top1.float(), prog_bar=True, sync_dist=True, reduce_fx="max")
        self.log("val/top5", top5.float(), sync_dist=True, reduce_fx="max")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return fp32 logits ``[B, num_classes]``, whatever the trainer's precision: a result is scored in fp32."""
        with full_precision(self.device.type):
            logits: Tensor = self.model(batch.image)
        return logits

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return class probabilities ``[B, num_classes]`` in fp32."""
        return self.test_step(batch, batch_idx, dataloader_idx).softmax(1)

    def setup(self, stage: str) -> None:
        """Refuse data whose classes are not the network's."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "check_classes"):
            data.check_classes(self.network.num_classes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return SGD and a schedule that moves every step."""
        optimizer = build_optimizer(self.optimisation, self.model.parameters())
        scheduler = LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        # `trainer.estimated_stepping_batches` would build the training loader before its state is restored, and a
        # resumed run would start its epoch anew. At step 0, the only one asked for so early, no length is needed.
        if step == 0:
            return rate_factor(self.optimisation, 0.0, 1.0)
        steps_an_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        epochs = float(self.trainer.max_epochs or -1)
        if epochs < 0:
            epochs = self.trainer.max_steps / steps_an_epoch
        return rate_factor(self.optimisation, step / steps_an_epoch, epochs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network in one sentence, before torch does in many.

        Of an AdvProp checkpoint another module takes the main branch.
        """
        if without_auxiliary(self.state_dict()).keys() == self.state_dict().keys():
            checkpoint["state_dict"] = without_auxiliary(checkpoint["state_dict"])
        state = {
            name.removeprefix(LIGHTNING_PREFIX): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith(LIGHTNING_PREFIX)
        }
        beside = sorted(
            name
            for name in checkpoint["state_dict"].keys() ^ self.state_dict().keys()
            if not name.startswith(LIGHTNING_PREFIX)
        )
        if beside and self.strict_loading:
            raise UserError(
                f"The checkpoint and {type(self).__name__} differ in {len(beside)} tensors beside the network's (first "
                f"{beside[0]}): use the module that wrote it, or save it with this one's alone."
            )
        name = f"{self.network.name} with {self.network.num_classes} classes"
        check_fit(state, self.classifier.network, "The checkpoint", name)

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell which network this is: module, settings, sha256 of the weights."""
        return {
            "module": type(self).__name__,
            "network": self.network.name,
            "num_classes": self.network.num_classes,
            "weights": self.network.weights,
            "weights_sha256": weights_digest(self.classifier.network),
            "normalisation": {
                "mean": self.classifier.mean.flatten().tolist(),
                "std": self.classifier.std.flatten().tolist(),
            },
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "settings": {k: v for k, v in self.hparams.items() if k != "network" and not k.startswith("_")},
        }
