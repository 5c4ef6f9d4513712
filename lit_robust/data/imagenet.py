"""ImageNet, or any set of classes with a training and a validation split."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lit_robust.batch import EvaluationSet
from lit_robust.data.loader import EvaluationSamples, PlannedLoader, TrainingSamples
from lit_robust.data.module import ShardDataModule
from lit_robust.data.transforms import EvaluationCrop, TrainingCrop
from lit_robust.errors import DataError, UserError
from lit_robust.shards import IndexedReader, ShardIndex, decoder_versions


class ImageNetDataModule(ShardDataModule):
    """Shards in ``<root>/imagenet/`` with the splits ``train`` and ``val``; the test loader is ``imagenet``.

    Args:
        root: folder that holds ``imagenet/``.
        training: crop and flip of training images.
        evaluation: resize and crop of validation and test images.
        batch_size: samples a rank and training batch.
        eval_batch_size: samples a rank and evaluation batch.
        num_workers: processes a loader that read and decode; 0 does both in the main process.
        seed: of order and augmentation; null takes that of ``seed_everything``.
        name: subfolder of ``root``, and name of the test loader.
    """

    def __init__(
        self,
        root: Path = Path("data"),
        training: TrainingCrop = TrainingCrop(),
        evaluation: EvaluationCrop = EvaluationCrop(),
        batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 8,
        seed: int | None = None,
        name: str = "imagenet",
    ) -> None:
        super().__init__(root, name, batch_size, eval_batch_size, num_workers, seed)
        self.training = training
        self.evaluation = evaluation
        self._indexes: dict[str, ShardIndex] = {}

    def setup(self, stage: str) -> None:
        """Read the shard index of the splits that ``stage`` (fit, validate, test or predict) needs."""
        for split in ("train", "val") if stage == "fit" else ("val",):
            if split not in self._indexes:
                self._indexes[split] = labelled_index(self.folder, split)

    def train_dataloader(self) -> PlannedLoader:
        """Return the shuffled training loader."""
        index = self._indexes["train"]
        rows = np.arange(len(index))
        samples = TrainingSamples(IndexedReader(index), rows, index.labels, self.training, self.seed)
        return self.training_loader(samples)

    def val_dataloader(self) -> PlannedLoader:
        """Return the validation loader."""
        index = self._indexes["val"]
        samples = EvaluationSamples(IndexedReader(index), np.arange(len(index)), index.labels, self.evaluation)
        return self.evaluation_loader(samples)

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the validation images under the set's name."""
        return {self.name: self.val_dataloader()}

    def predict_dataloader(self) -> PlannedLoader:
        """Return the validation images."""
        return self.val_dataloader()

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """The one test set: the validation split."""
        index = self._indexes["val"]
        protocol = {"split": "val", **shard_protocol(index, self.evaluation)}
        names = tuple(index.class_names or ())
        return {self.name: EvaluationSet(self.name, len(index), protocol, class_names=names)}

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless a network of ``num_classes`` classes fits the labels."""
        for split, index in self._indexes.items():
            largest = int(index.labels.max())
            declared = index.num_classes
            if largest >= num_classes or (declared is not None and declared != num_classes):
                has = largest + 1 if declared is None else declared
                raise UserError(
                    f"The network has {num_classes} classes, but {self.folder} ({split}) has {has}: "
                    f"set model.init_args.network.num_classes to {has}."
                )


def labelled_index(folder: Path, split: str) -> ShardIndex:
    """Open a split's index; every sample must have a label.

    Raises:
        DataError: a sample has no ``cls`` member, or the shards are defective.
        UserError: there are no such shards.
    """
    index = ShardIndex.open(folder, split)
    without = np.flatnonzero(index.labels < 0)
    if len(without):
        raise DataError(
            f"{len(without)} of {len(index)} samples in {folder} ({split}) have no class, the first is "
            f"{index.key(int(without[0]))}: each needs a `cls` member with its class number."
        )
    return index


def shard_protocol(index: ShardIndex, crop: EvaluationCrop) -> dict[str, object]:
    """Return plain values for the results file: preprocessing, decoders, and the digest of the shards' content."""
    return {**crop.protocol(), "decoder": decoder_versions(), "shards_sha256": index.digest}
