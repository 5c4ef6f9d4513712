"""What every training scheme shares: network, loss, optimiser, schedule, accuracy and the test step."""

import math
import pickle
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.plugins.layer_sync import LayerSync
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_robust.core.batch import Batch, as_batch, check_unit_range
from lit_robust.core.errors import UserError
from lit_robust.core.logits import fitting
from lit_robust.core.precision import full_precision
from lit_robust.metrics import TopKAccuracy
from lit_robust.models import Classifier, Network, build_classifier, check_fit, weights_digest
from lit_robust.models.auxiliary_norm import without_auxiliary
from lit_robust.models.foreign.checkpoint import three_numbers
from lit_robust.models.foreign.reader import check_archive, is_archive
from lit_robust.models.weights import LIGHTNING_PREFIX
from lit_robust.modules.optimisation import (
    SCHEDULES,
    Optimisation,
    build_optimizer,
    build_schedule,
    head_of,
    rate_factor,
    warmup_factor,
)

AnyModule = TypeVar("AnyModule", bound="ClassifierModule")


class ClassifierModule(LightningModule, ABC):
    """A classifier with everything but the training scheme; a scheme adds its ``training_step``.

    Attributes:
        validates_fit: whether ``fit`` validates, and so reads a validation split.
        samples_once: int64 ``[N]``, the numbers of the training samples that ``fit`` takes once, in order and as for an
            evaluation; None where it trains.

    Args:
        network: which network, with which weights.
        optimisation: optimiser, schedule and label smoothing; used by ``fit`` alone.
    """

    validates_fit = True
    samples_once: NDArray[np.int64] | None = None

    def __init__(self, network: Network, optimisation: Optimisation) -> None:
        super().__init__()
        self.optimisation = optimisation
        classifier = build_classifier(network)
        # Which the file of weights may have said; a checkpoint says it by itself.
        mean, std = classifier.normalisation
        rescales = getattr(classifier.network, "transform_input", None)
        self.network = replace(network, mean=mean, std=std, transform_input=rescales, new_head=False)
        if optimisation.body_rate == 0:
            classifier.requires_grad_(False)
            head_of(classifier.network, network.num_classes).requires_grad_(True)
        self.model: nn.Module = classifier
        self.validation_accuracy = TopKAccuracy(top_k=(1, 5))
        self._came: dict[tuple[str, int], int] = {}

    def keep_hyperparameters(self, **settings: Any) -> None:
        """Save the constructor's arguments as plain values, which a checkpoint can hold without running code.

        The two underscored names are LightningCLI's own: they let ``load_from_checkpoint`` build the nested settings
        again, whether the module was made by a config or in Python.
        """
        settings["network"] = self.network
        plain = {name: asdict(value) if is_dataclass(value) else value for name, value in settings.items()}  # type: ignore[arg-type]
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        instantiator = "pytorch_lightning.cli.instantiate_module"
        # Not logged from here: the command line logs the whole configuration.
        self.save_hyperparameters({"_class_path": path, "_instantiator": instantiator, **plain}, logger=False)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the module that a checkpoint of ``lit-robust fit`` holds, of the class that it names.

        Args:
            checkpoint_path: the file.
            map_location: as in Lightning.
            hparams_file: as in Lightning.
            strict: as in Lightning.
            weights_only: as in Lightning.
            **kwargs: settings of the module in place of the checkpoint's.

        Raises:
            UserError: the file is not such a checkpoint, its class is not imported or not of this one, or its network
                is a callable of the user's own that is not named here.
        """
        file = Path(checkpoint_path)
        kept = read_hyperparameters(file)
        module = module_of(file, kept["_class_path"], cls) if "_class_path" in kept else cls
        network = dict(kept.get("network", {}))
        name = str(network.get("name"))
        if ":" in name and "network" not in kwargs:
            raise UserError(
                f"The checkpoint {file} is of {name}, which is called only where you name it: give "
                f'network=Network("{name}", ...).'
            )
        if network.get("weights") is not None and "network" not in kwargs:
            # The file that training started from may be gone. It may have said how its images are normalised, and a
            # checkpoint of an earlier version does not say that by itself.
            says = network.get("mean") is not None and network.get("std") is not None
            kwargs["network"] = network | {"weights": None if says else str(file)}
        if module is not cls:
            return module.load_from_checkpoint(file, map_location, hparams_file, strict, weights_only, **kwargs)
        plain = {key: asdict(value) if is_dataclass(value) else value for key, value in kwargs.items()}  # type: ignore[arg-type]
        return super().load_from_checkpoint(file, map_location, hparams_file, strict, weights_only, **plain)

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
        try:
            return F.cross_entropy(logits, labels, label_smoothing=self.optimisation.label_smoothing)
        except IndexError as error:  # On the processor alone; a plain loader's labels nobody has checked.
            low, high = labels.min().item(), labels.max().item()
            raise UserError(f"Labels are {low} to {high}, of a network of {logits.shape[1]} classes.") from error

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Take what a plain loader gives, see ``as_batch``, and number its samples as they come in each epoch.

        A data module of ours gives such batches by itself.

        Raises:
            UserError: it is not a batch of images and labels, or the first one's images are not in [0, 1].
        """
        if isinstance(batch, Batch):
            return batch
        place = (str(self.trainer.state.stage), dataloader_idx)
        first = self._came.get(place, 0)
        taken = as_batch(batch, first, self.trainer.global_rank, self.trainer.world_size)
        if first == 0:
            check_unit_range(taken.image)
        self._came[place] = first + len(taken)
        return taken

    def on_train_epoch_start(self) -> None:
        """Number a plain loader's samples from 0 again."""
        stage = str(self.trainer.state.stage)
        self._came = {place: came for place, came in self._came.items() if place[0] != stage}
        if self.training and self.optimisation.body_rate == 0:
            self.model.eval()  # The body's batch statistics stay, and its dropout is off.
            if head := self._head():
                head.train()

    def _head(self) -> nn.Module | None:
        """Return the last layer where the others are to be trained at another rate."""
        return None if self.optimisation.body_rate == 1 else head_of(self.model, self.network.num_classes)

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = on_train_epoch_start

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
        with full_precision(self.device.type), fitting(batch.image):
            logits: Tensor = self.model(batch.image)
        return logits

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return class probabilities ``[B, num_classes]`` in fp32."""
        return self.test_step(batch, batch_idx, dataloader_idx).softmax(1)

    def setup(self, stage: str) -> None:
        """Refuse data whose classes are not the network's."""
        # True of every data module of ours, and nothing that a user could change.
        warnings.filterwarnings("ignore", message="You have overridden .on_before_batch_transfer. in .LightningModule.")
        self.check(stage)

    def check(self, stage: str) -> None:
        """Raise a UserError where the data do not fit; the command line asks for it before any logger starts.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; the data are set up for it.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "check_classes"):
            data.check_classes(self.network.num_classes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the settings' optimiser, and a schedule that moves every step."""
        optimizer = build_optimizer(self.optimisation, self.model.parameters(), self._head())
        scheduler = build_schedule(self.optimisation, optimizer) or LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        # `trainer.estimated_stepping_batches` would build the training loader before its state is restored, and a
        # resumed run would start its epoch anew. At step 0, the only one asked for so early, no length is needed.
        if step == 0:
            return rate_factor(self.optimisation, 0.0, 1.0)
        epochs = float(self.trainer.max_epochs or -1)
        if epochs < 0:
            epochs = self._epochs_of(self.trainer.max_steps)
        return rate_factor(self.optimisation, self._epochs_of(step), epochs)

    def _epochs_of(self, steps: int) -> float:
        return steps / math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take a step; in the warm-up of one of torch's schedules at a share of its rate, which goes on as it was."""
        scheduled = [group["lr"] for group in optimizer.param_groups]
        if self.optimisation.schedule not in SCHEDULES:
            share = warmup_factor(self.optimisation, self._epochs_of(self.trainer.global_step))
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * share
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for group, rate in zip(optimizer.param_groups, scheduled, strict=True):
            group["lr"] = rate

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
        others = sorted(
            name
            for name in checkpoint["state_dict"].keys() ^ self.state_dict().keys()
            if not name.startswith(LIGHTNING_PREFIX)
        )
        if others and self.strict_loading:
            raise UserError(
                f"The checkpoint and {type(self).__name__} differ in {len(others)} tensors besides the network's "
                f"(first {others[0]}): use the module that wrote it, or save it with this one's alone."
            )
        kept = checkpoint.get("hyper_parameters", {}).get("network") or {}
        for key, own in (("mean", self.network.mean), ("std", self.network.std)):
            if (found := three_numbers(kept.get(key))) and found != own:
                raise UserError(
                    f"The checkpoint's network normalises by the {key} {list(found)}, this one by {list(own or ())}: "
                    f'give --model.network.{key} "{list(found)}".'
                )
        name = f"{self.network.name} with {self.network.num_classes} classes"
        check_fit(state, self.classifier.network, "The checkpoint", name)

    def describe(self) -> dict[str, Any]:
        """Return plain values that identify the network: module, settings, sha256 of the weights."""
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


def module_of(file: Path, class_path: object, base: type[AnyModule]) -> type[AnyModule]:
    """Return the class that a checkpoint names, among those that are imported: a file must not import anything.

    Args:
        file: the checkpoint.
        class_path: what its hyperparameters say, such as ``lit_robust.modules.standard.StandardModule``.
        base: the class that it must be, or inherit from.

    Raises:
        UserError: it names none of these.
    """
    path, _, name = str(class_path).rpartition(".")
    found = getattr(sys.modules.get(path), name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"The checkpoint {file} is of {str(class_path)[:200]!r}, which is not an imported {base.__name__}: import "
            "it first, or give the file as weights of a Network."
        )
    return found


def read_hyperparameters(file: Path) -> dict[str, Any]:
    """Return a checkpoint's hyperparameters, without reading its tensors.

    Raises:
        UserError: the file is damaged, or no checkpoint of Lightning's or of ours.
    """
    what = "is not a checkpoint, or not whole" if file.is_file() else "does not exist"
    none = f"The checkpoint {file} {what}: give a file that `lit-robust fit` wrote."
    if not is_archive(file):
        raise UserError(none)
    check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The checkpoint {file} holds Python objects besides tensors and plain values, which are never run here: "
            "give it as --model.network.weights."
        ) from error
    except Exception as error:  # torch refuses an archive that is not its own in several ways.
        raise UserError(none) from error
    if not isinstance(content, dict) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise UserError(f"{file} holds weights alone: give it as --model.network.weights.")
    kept = content.get("hyper_parameters", {})
    said = kept.get("network", {}) if isinstance(kept, Mapping) else kept
    if not isinstance(kept, Mapping) or not isinstance(said, Mapping):
        raise UserError(
            f"The checkpoint {file} is of no module of lit_robust, as {str(said)[:60]!r} describes no network of ours: "
            "give it as --model.network.weights."
        )
    return dict(kept)


class SynchronisedNorms(LayerSync):
    """Makes batch norms take their statistics over all ranks.

    Lightning's own plugin, which ``sync_batchnorm: true`` asks for, replaces every batch norm by a bare one. Some of
    timm's hold their activation, too (``BatchNormAct2d`` of EfficientNet, RegNet and others), and would lose it.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with its batch norms replaced; parameters and buffers are the same tensors."""
        from timm.layers.norm_act import convert_sync_batchnorm  # It loads all of timm's networks.

        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model as it is: where no other rank is, a synchronised norm is a plain one."""
        return model
