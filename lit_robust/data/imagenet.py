"""ImageNet, or any set of classes with a training and a validation split."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.batch import EvaluationSet, TrainingSet
from lit_robust.core.errors import UserError
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.splits import Reading, Split, TableSplit, check_same_classes, open_table
from lit_robust.data.loading.transforms import EvaluationCrop, TrainingCrop
from lit_robust.data.module import ShardDataModule, check_classes
from lit_robust.reference import restricted_imagenet
from lit_robust.shards.address import is_url, shown


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


class StylizedImageNetDataModule(ImageNetDataModule):
    """Shards in ``<root>/stylized-imagenet/`` with the splits ``train`` and ``val``; the test loader has that name.

    There is no canonical copy of these images: everybody draws them with rgeirhos/Stylized-ImageNet. So accuracies on
    ``val`` are comparable only on the same shards, whose digest the results hold. To train on these and ImageNet
    together, see `JoinedDataModule`.

    Args:
        root: folder that holds ``stylized-imagenet/``, or its URL.
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
        name: str = "stylized-imagenet",
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, training, evaluation, batch_size, eval_batch_size, num_workers, seed, name, reading)


class RestrictedImageNetDataModule(ImageNetDataModule):
    """The images of ImageNet's shards that fall into the 9 super-classes, labelled 0 to 8 by them.

    dog, cat, frog, turtle, bird, primate, fish, crab, insect; the test loader is ``restricted-imagenet``.

    Args:
        root: folder that holds ``imagenet/``, with ImageNet's 1,000 class numbers as labels.
        training: crop and flip of training images.
        evaluation: resize and crop of validation and test images.
        batch_size: samples a rank and training batch.
        eval_batch_size: samples a rank and evaluation batch.
        num_workers: processes a loader that read and decode; 0 does both in the main process.
        seed: of order and augmentation; null takes that of ``seed_everything``.
        name: name of the test loader.
        reading: how shards are read.
    """

    FOLDER = "imagenet"

    def __init__(
        self,
        root: str | Path = "data",
        training: TrainingCrop = TrainingCrop(),
        evaluation: EvaluationCrop = EvaluationCrop(),
        batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 8,
        seed: int | None = None,
        name: str = "restricted-imagenet",
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, training, evaluation, batch_size, eval_batch_size, num_workers, seed, name, reading)

    def folders(self) -> list[Path]:
        """Return the folder that must be there."""
        return [] if is_url(self.root) else [Path(self.root) / self.FOLDER]

    def open(self, split: str) -> Split:
        """Open ImageNet's split, and keep what falls into a super-class."""
        if is_url(self.root):
            raise UserError(
                f"Restricted ImageNet selects samples, which {shown(self.root)} cannot: copy the shards to a disk."
            )
        whole = open_table(Path(self.root) / self.FOLDER, split, self.reading)
        return restrict(whole)


def restrict(whole: TableSplit) -> TableSplit:
    """Return the samples of ImageNet that fall into one of the super-classes, labelled by them.

    Raises:
        UserError: the labels are not ImageNet's 1,000, or no sample is left.
    """
    superclasses = restricted_imagenet()
    number = np.full(1000, -1, dtype=np.int64)
    for place, classes in enumerate(superclasses.values()):
        number[classes.start : classes.stop] = place
    if whole.num_classes not in (None, 1000) or int(whole.table.label.max()) >= 1000:
        raise UserError(f"{whole.where} has {whole.classes} classes, not ImageNet's 1,000: name ImageNet's shards.")
    kept = np.flatnonzero(number[whole.table.label] >= 0)
    if not len(kept):
        raise UserError(f"No image of {whole.where} falls into the classes of Restricted ImageNet: check the shards.")
    table = whole.table.select(kept)
    return TableSplit(
        where=f"{whole.where}, restricted to 9 super-classes",
        num_classes=len(superclasses),
        class_names=tuple(superclasses),
        protocol={**whole.protocol, "restricted": f"{len(kept)} of {len(whole)} images, in 9 super-classes"},
        table=table.relabel(number[table.label]),
    )
