"""ImageNet, or any set of classes with a training and a validation split."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.batch import EvaluationSet, TrainingSet
from lit_robust.core.errors import UserError
from lit_robust.data.loader import PlannedLoader
from lit_robust.data.module import ShardDataModule
from lit_robust.data.same_classes import check_same_classes
from lit_robust.data.split import Reading, Split, TableSplit
from lit_robust.data.transforms import EvaluationCrop, TrainingCrop


class ImageNetDataModule(ShardDataModule):
    """Shards in ``<root>/imagenet/`` with the splits ``train`` and ``val``; the test loader is ``imagenet``.

    Args:
        root: folder that holds ``imagenet/``, or its URL: ``https://``, ``s3://``, ``gs://``, ``hf://``, or a command
            ``pipe:...{}...``; behind a URL an info file must list the shards and their counts.
        training: crop and flip of training images.
        evaluation: resize and crop of validation and test images.
        batch_size: samples a rank and training batch.
        eval_batch_size: samples a rank and evaluation batch.
        num_workers: processes a loader that read and decode; 0 does both in the main process.
        seed: of order and augmentation; null takes that of ``seed_everything``.
        name: subfolder of ``root``, and name of the test loader.
        reading: how shards are read.
    """

    def __init__(
        self,
        root: str | Path = "data",
        training: TrainingCrop = TrainingCrop(),
        evaluation: EvaluationCrop = EvaluationCrop(),
        batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 8,
        seed: int | None = None,
        name: str = "imagenet",
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, name, batch_size, eval_batch_size, num_workers, seed, reading)
        self.training = training
        self.evaluation = evaluation
        self._splits: dict[str, Split] = {}
        self._once: NDArray[np.int64] | None = None

    def setup(self, stage: str) -> None:
        """Read the shard index of the splits that ``stage`` (fit, validate, test or predict) needs.

        Raises:
            UserError: one is missing, or they have other classes.
        """
        for split in ("train", "val") if stage == "fit" else ("val",):
            if split not in self._splits:
                self._splits[split] = self.open(split)
        if len(self._splits) == 2:
            check_same_classes(self._splits["train"], self._splits["val"])

    def train_split(self) -> Split:
        """Return the training samples; known after ``setup``."""
        return self._splits["train"]

    @property
    def training_set(self) -> TrainingSet:
        """The training samples' labels, and how `train_once` prepares them: as for an evaluation."""
        return self.describe_training(self.train_split(), self.evaluation)

    def train_once(self, numbers: NDArray[np.int64]) -> None:
        """Let the training loader give these training samples once, in order, prepared as for an evaluation."""
        self._once = numbers

    def train_dataloader(self) -> PlannedLoader:
        """Return the shuffled training loader, or that of `train_once`."""
        if self._once is not None:
            return self.once_loader(self.train_split(), self._once, self.evaluation)
        return self.training_loader(self.train_split(), self.training)

    def val_dataloader(self) -> PlannedLoader:
        """Return the validation loader."""
        return self.evaluation_loader(self._splits["val"], self.evaluation)

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the validation images under the set's name."""
        return {self.name: self.val_dataloader()}

    def predict_dataloader(self) -> PlannedLoader:
        """Return the validation images."""
        return self.val_dataloader()

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """The one test set: the validation split."""
        split = self._splits["val"]
        protocol = self.describe(split, "val", self.evaluation)
        return {self.name: EvaluationSet(self.name, len(split), protocol, class_names=split.class_names)}

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each validation image by its number; None for a stream."""
        return self._splits["val"].key

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless a network of ``num_classes`` classes fits the labels."""
        for split in self._splits.values():
            check_classes(split, num_classes)


def check_classes(split: Split, num_classes: int) -> None:
    """Raise a UserError unless a network of ``num_classes`` classes fits a split's labels."""
    needed = split.classes
    # A publisher's count must be met exactly; without one, a network may have more classes than are seen.
    if split.num_classes is None and isinstance(split, TableSplit) and needed > num_classes:
        highest = split.table.key(int(split.table.label.argmax()))
        raise UserError(
            f"The network has {num_classes} classes, but {split.where} has {highest} in class {needed - 1}: set "
            f"model.init_args.network.num_classes to the data's count, at least {needed}, or mend that class."
        )
    if split.num_classes is not None and needed != num_classes:
        raise UserError(
            f"The network has {num_classes} classes, but {split.where} has {needed}: "
            f"set model.init_args.network.num_classes to {needed}."
        )
