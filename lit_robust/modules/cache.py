"""The cache model: `fit` builds its memory in one pass, `test` answers from it (Orhan and Lake 2019)."""

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

import lit_robust
from lit_robust.core.batch import Batch, TrainingSet
from lit_robust.core.errors import DataError, UserError, check_choice
from lit_robust.core.precision import full_precision
from lit_robust.memory import Manifest, Memory, nearest_keys, open_memory
from lit_robust.memory.build import (
    MemoryBuilder,
    begin_memory,
    building_alone,
    check_place,
    check_room,
    is_begun,
    resume_memory,
    samples_done,
)
from lit_robust.memory.classifier import CacheClassifier, ContinuousLayer, NearestLayer, Retrieval, Transform
from lit_robust.memory.compression import unit_length
from lit_robust.memory.store import KeyType
from lit_robust.models import Classifier, Network, weights_digest
from lit_robust.models.taps import layer_of
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation


class _Frees(Callback):
    def __init__(self, lock: ExitStack) -> None:
        self.lock = lock

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.lock.close()


class CacheModule(ClassifierModule):
    """A frozen network with an episodic memory of all training images, and nothing to train.

    ``fit`` takes each training image once, prepared as for evaluation, and writes its unit-length features into the
    memory's folder, on any number of ranks that share a file system; a run that was interrupted goes on. ``test``,
    ``validate`` and ``predict`` answer from the memory.

    Args:
        network: the backbone, with its weights.
        memory: folder of the memory.
        layer: whose output is the key, by its name in the network, such as ``avgpool``, ``fc`` or ``layer4.1``; paper
            000's ``layer4_bottleneck1_relu`` is ``layer4.1``. Maps are averaged over their places.
        transform: done to the output: ``none``, or ``softmax``, which Orhan and Lake (2019) do to ``fc``.
        retrieval: how the memory is asked.
        key_type: type of the stored numbers; ``float16`` needs half the disk and keeps about 3 digits.
        check_digest: read all keys before a test, to hold them against their digest; false believes their bytes.
    """

    keeps_its_state = True  # Keys that are written stay written: a stopped `fit` needs no checkpoint to go on.

    validates_fit = False  # There is nothing to validate before the memory is whole.

    def __init__(
        self,
        network: Network,
        memory: str | Path = "memory",
        layer: str = "layer4_bottleneck1_relu",
        transform: Transform = "none",
        retrieval: Retrieval = Retrieval(),
        key_type: KeyType = "float32",
        check_digest: bool = True,
    ) -> None:
        super().__init__(network, Optimisation())
        check_choice("transform", transform, get_args(Transform))
        check_choice("key_type", key_type, get_args(KeyType))
        self.keep_hyperparameters(
            network=network,
            memory=str(memory),
            layer=layer,
            transform=transform,
            retrieval=retrieval,
            key_type=key_type,
            check_digest=check_digest,
        )
        self.memory_folder = Path(memory)
        self.retrieval = retrieval
        self.key_type: KeyType = key_type
        self.check_digest = check_digest
        self.model = CacheClassifier(self.classifier, layer, transform)
        self.automatic_optimization = False
        self.memory: Memory | None = None
        self._builder: MemoryBuilder | None = None
        self._lock = ExitStack()  # Of the memory that is built.

    def configure_callbacks(self) -> list[Callback]:
        """Return what frees the memory's lock where an exception ends its building: no hook informs a module."""
        return [_Frees(self._lock)]

    @property
    def cache(self) -> CacheClassifier:
        """The backbone with its memory."""
        assert isinstance(self.model, CacheClassifier)
        return self.model

    @property
    def classifier(self) -> Classifier:
        """The backbone behind its normalisation."""
        return self.cache.backbone if isinstance(self.model, CacheClassifier) else super().classifier

    @property
    def backbone(self) -> nn.Module:
        """The network alone, which a gray-box attack sees."""
        return self.classifier

    @property
    def continuous(self) -> nn.Module:
        """This model with all keys of its memory taking part: an attack's way around the choice of neighbours."""
        assert self.memory is not None
        other = CacheClassifier(self.classifier, self.cache.layer, self.cache.transform)
        settings = Retrieval("continuous", self.retrieval.theta, precision=self.retrieval.precision)
        other.open(self.memory, settings, self.device)
        return other.to(self.device).eval()

    def setup(self, stage: str) -> None:
        """Open the memory for a test; find out what is left to be built for a fit.

        Raises:
            UserError: there is no memory, or it is of another backbone, layer or class count.
        """
        super().setup(stage)
        if stage == "fit":
            self._begin()
            return
        # One rank reads all keys for all.
        memory = open_memory(self.memory_folder, self.check_digest and self.trainer.is_global_zero)
        with torch.inference_mode(False):
            self.cache.open(memory, self.retrieval, self.trainer.strategy.root_device)
        self.memory = memory

    def check(self, stage: str) -> None:
        """Raise a UserError where the data, the layer or the memory do not fit.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; the data are set up for it.
        """
        super().check(stage)
        layer_of(self.classifier, self.cache.layer)
        if stage == "fit":
            check_place(self.memory_folder)
            self._check_room()
            return
        manifest = open_memory(self.memory_folder, check_digest=False).manifest
        manifest.check(
            self.memory_folder, self._backbone(), self.cache.layer, self.cache.transform, self.network.num_classes
        )

    def _check_room(self) -> None:
        """Refuse to begin where the disk has no room for the keys, of which a first one says how large they are."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "training_set"):
            return  # `_begin` refuses it.
        self.samples_once = np.array([0])
        image = data.train_dataloader().first().as_float().image
        left = int(np.count_nonzero(~samples_done(self.memory_folder, data.training_set.labels)))
        check_room(self.memory_folder, left, self._vectors(image).shape[1], self.key_type)

    def _vectors(self, images: Tensor) -> Tensor:
        """Return what becomes keys ``[B, d]``, in the mode of an evaluation and in full precision."""
        with torch.no_grad(), full_precision(self.device.type):
            was_training = self.model.training
            self.model.eval()
            vectors = self.cache.vectors(images)
            self.model.train(was_training)
        return vectors

    def _begin(self) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "training_set"):
            raise UserError(
                "A memory is built from a data module such as ImageNetDataModule: give fit one instead of a loader."
            )
        self._training: TrainingSet = data.training_set
        if self.trainer.is_global_zero:
            self._lock.enter_context(building_alone(self.memory_folder))
        left = np.flatnonzero(~samples_done(self.memory_folder, self._training.labels))
        # Lightning needs a batch to come to an end.
        self.samples_once = left if len(left) else np.array([0])
        self.trainer.fit_loop.max_epochs = 1
        warnings.filterwarnings("ignore", message=".*configure_optimizers.* returned .None.")
        self.trainer.limit_val_batches = 0

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Write the keys of a batch."""
        if batch.broken is not None and bool(batch.broken.any()):
            raise DataError(
                f"Training image {int(batch.index[batch.broken][0])} cannot be read, and a memory has a place for each "
                "one: replace it, or pack the shards again without it."
            )
        kept = batch.select(batch.valid)
        vectors = self._vectors(batch.image)[batch.valid].cpu().numpy()
        if self._builder is None:
            self._builder = self._open_builder(vectors.shape[1])
        keys, norms = unit_length(vectors)
        self._builder.write(kept.index.cpu().numpy(), keys, norms)

    def _open_builder(self, dimensions: int) -> MemoryBuilder:
        labels = self._training.labels
        manifest = Manifest(
            backbone=self._backbone(),
            layer=self.cache.layer,
            transform=self.cache.transform,
            images=self._training.protocol,
            count=len(labels),
            dimensions=dimensions,
            num_classes=self.network.num_classes,
            key_type=self.key_type,
            version=lit_robust.__version__,
        )
        if self.trainer.is_global_zero and not is_begun(self.memory_folder):
            begin_memory(self.memory_folder, manifest, labels)
        self.trainer.strategy.barrier()
        return resume_memory(self.memory_folder, manifest, labels)

    def on_fit_end(self) -> None:
        """Check that every key is there, and move the memory to its place."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero and self._builder is not None:
            with self._lock:
                manifest = self._builder.finish()
            print(f"{self.memory_folder} holds {manifest.count:,} keys of {manifest.dimensions} dimensions.")
        self.trainer.strategy.barrier()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return fp32 log-probabilities ``[B, num_classes]``; of the first images compare an approximate search."""
        layer = self.cache.asked()
        if isinstance(layer, NearestLayer) and layer.wants_comparison and bool(batch.valid.any()):
            with full_precision(self.device.type):
                layer.compare(self.cache.queries(batch.image[batch.valid]))
        return super().test_step(batch, batch_idx, dataloader_idx)

    def familiarity(self, images: Tensor) -> Tensor:
        """Return how similar each image is to the most similar key, ``[B]``, in [-1, 1]; low where it is new."""
        with full_precision(self.device.type):
            queries = self.cache.queries(images)
            return nearest_keys(queries, self.cache.asked().keys, 1)[0][:, 0]

    def configure_optimizers(self) -> None:  # type: ignore[override]
        """Train nothing."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse checkpoints: a cache model has its backbone's weights and its memory."""
        raise UserError(
            "A CacheModule has no checkpoints of its own: give the backbone's as --model.network.weights, and its "
            "memory as --model.memory."
        )

    def _backbone(self) -> dict[str, Any]:
        classifier = self.classifier
        return {
            "name": self.network.name,
            "num_classes": self.network.num_classes,
            "weights_sha256": weights_digest(classifier.network),
            "mean": [round(value, 6) for value in classifier.mean.flatten().tolist()],
            "std": [round(value, 6) for value in classifier.std.flatten().tolist()],
        }

    def describe(self) -> dict[str, Any]:
        """Return plain values that identify the network and the memory, and say how it is asked."""
        described = super().describe()
        if self.memory is None:
            return described
        manifest, layer = self.memory.manifest, self.cache.asked()
        found = layer.facts() if isinstance(layer, NearestLayer) else {}
        return {
            **described,
            "layer": manifest.layer,
            "transform": manifest.transform,
            "retrieval": self.retrieval.kind,
            "theta": self.retrieval.theta,
            **({"k": self.retrieval.k} if self.retrieval.kind == "nearest" else {}),
            "keys": manifest.count,
            "dimensions": manifest.dimensions,
            "keys_sha256": manifest.keys_sha256,
            "compression": list(manifest.compression),
            "memory_images": dict(manifest.images),
            "is_sharded": isinstance(layer, ContinuousLayer) and layer.is_sharded,
            **found,
        }
