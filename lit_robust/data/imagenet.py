"""ImageNet, or any set of classes with a training and a validation split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np

from lit_robust.core.batch import EvaluationSet, TrainingSet
from lit_robust.core.errors import UserError, check_count
from lit_robust.core.seeds import run_seed
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.samples import TrainingSamples
from lit_robust.data.loading.splits import Split, TableSplit, check_same_classes, open_table
from lit_robust.data.loading.transforms import EvaluationCrop, TrainingCrop
from lit_robust.data.module import ShardDataModule, check_classes
from lit_robust.reference import restricted_imagenet


@dataclass(eq=False, repr=False)
class ImageNetDataModule(ShardDataModule):
    """Shards in ``<root>/imagenet/`` with the splits ``train`` and ``val``; the test loader is ``imagenet``.

    Attributes:
        training: crop and flip of training images.
        evaluation: resize and crop of validation and test images.
        batch_size: samples a rank and training batch.
        seed: of order and augmentation; null takes that of ``seed_everything``.
    """

    training: TrainingCrop = TrainingCrop()
    evaluation: EvaluationCrop = EvaluationCrop()
    _: KW_ONLY
    batch_size: int = 256
    seed: int | None = None
    name: str = "imagenet"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seed = run_seed() if self.seed is None else self.seed
        check_count("batch_size", self.batch_size, 1)
        check_count("seed", self.seed, 0)
        self._splits: dict[str, Split] = {}

    def setup(self, stage: str) -> None:
        """Read the shard index of the splits that ``stage`` (fit, validate, test or predict) needs.

        Raises:
            UserError: one is missing, or they have other classes.
        """
        for split in self.fit_splits() if stage == "fit" else ("val",):
            if split not in self._splits:
                self._splits[split] = self.open(split)
        if len(self._splits) == 2:
            check_same_classes(self._splits["train"], self._splits["val"])

    def train_split(self) -> Split:
        """Return the training samples; known after ``setup``."""
        return self._splits["train"]

    @property
    def training_set(self) -> TrainingSet:
        """The training samples' labels, and how an evaluation prepares them."""
        return self.describe_training(self.train_split(), self.evaluation)

    def train_dataloader(self) -> PlannedLoader:
        """Return the training loader."""
        return self.training_loader(self.train_split())

    def training_loader(self, split: Split) -> PlannedLoader:
        """Return the shuffled loader of this rank: equal full batches on every rank.

        A module may ask for some samples once instead, by ``samples_once``; they come in order, as for an evaluation.
        """
        once = getattr(getattr(self.trainer, "lightning_module", None), "samples_once", None)
        if once is not None:
            return self.evaluation_loader(split, self.evaluation, once)
        assert self.seed is not None
        share = self.share(self.batch_size)
        if len(split) < share.world:
            raise UserError(
                f"{split.where} holds {len(split)} training images, fewer than the {share.world} ranks: start no more "
                f"than {len(split)}, by trainer.devices and trainer.num_nodes."
            )
        if len(split) < share.batch_size * share.world:
            ranks = "1 rank" if share.world == 1 else f"{share.world} ranks"
            raise UserError(
                f"{split.where} holds {len(split)} training images, fewer than one batch of {share.batch_size} on "
                f"{ranks}: set batch_size to {len(split) // share.world} or less."
            )
        source, plan = split.training(share, self.reading, self.seed)
        samples = TrainingSamples(source, self.training, self.seed, self.reading.on_error)
        return self.loader(samples, plan, keeps_workers=True)

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


@dataclass(eq=False, repr=False)
class StylizedImageNetDataModule(ImageNetDataModule):
    """Shards in ``<root>/stylized-imagenet/`` with the splits ``train`` and ``val``; the test loader has that name.

    There is no canonical copy of these images: everybody draws them with rgeirhos/Stylized-ImageNet. So accuracies on
    ``val`` are comparable only on the same shards, whose digest the results hold. To train on these and ImageNet
    together, see `JoinedDataModule`.
    """

    name: str = field(default="stylized-imagenet", kw_only=True)


@dataclass(eq=False, repr=False)
class RestrictedImageNetDataModule(ImageNetDataModule):
    """The images of ImageNet's shards that fall into the 9 super-classes, labelled 0 to 8 by them.

    dog, cat, frog, turtle, bird, primate, fish, crab, insect; the test loader is ``restricted-imagenet``. The shards
    lie in ``<root>/imagenet/`` and have ImageNet's 1,000 class numbers as labels.
    """

    name: str = field(default="restricted-imagenet", kw_only=True)

    @property
    def subfolders(self) -> Sequence[str]:
        """The subfolder of ``root`` that is read, whatever the name."""
        return ("imagenet",)

    def open(self, split: str) -> Split:
        """Open ImageNet's split, and keep what falls into a super-class."""
        self.check_on_disk("Restricted ImageNet selects samples")
        whole = open_table(Path(self.root) / self.subfolders[0], split, self.reading)
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
