"""The base of data modules that hold one set to test on, and none to train on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytorch_lightning.trainer.states import TrainerFn

from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.data.imagenet import check_classes
from lit_robust.data.loader import PlannedLoader
from lit_robust.data.module import ShardDataModule
from lit_robust.data.split import Reading, Split
from lit_robust.data.transforms import EvaluationCrop

IMAGENET_CLASSES = 1000


class SingleSetDataModule(ShardDataModule, ABC):
    """A data module with one test loader, of the module's name.

    A subclass opens the samples, and says by attributes what else the test set tells of itself.

    Args:
        root: folder, or URL, of all sets.
        name: subfolder of ``root``, and name of the test loader.
        evaluation: resize and crop.
        eval_batch_size: samples a rank and batch.
        num_workers: processes that read and decode; 0 does both in the main process.
        reading: how shards are read.
    """

    split_name = "test"
    classes: Sequence[int] = ()
    groups: Sequence[str] = ()
    categories: Mapping[str, Sequence[int]] = {}

    def __init__(
        self,
        root: str | Path,
        name: str,
        evaluation: EvaluationCrop,
        eval_batch_size: int,
        num_workers: int,
        reading: Reading,
    ) -> None:
        super().__init__(root, name, eval_batch_size, eval_batch_size, num_workers, seed=0, reading=reading)
        self.evaluation = evaluation
        self._samples: Split | None = None

    @abstractmethod
    def open_samples(self) -> Split:
        """Open the set."""

    @property
    def samples(self) -> Split:
        """The set; known after ``setup``."""
        assert self._samples is not None
        return self._samples

    def setup(self, stage: str) -> None:
        """Open the set, once."""
        check_stage(self.name, stage)
        if self._samples is None:
            self._samples = self.open_samples()

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the one test loader."""
        return {self.name: self.evaluation_loader(self.samples, self.evaluation)}

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """The one test set."""
        # Labels that a choice of ImageNet's classes was made among are ImageNet's numbers, whoever counted them how.
        classes = {"num_classes": IMAGENET_CLASSES} if self.classes else {}
        described = EvaluationSet(
            name=self.name,
            count=len(self.samples),
            protocol={**self.describe(self.samples, self.split_name, self.evaluation), **classes},
            categories=self.categories,
            class_names=self.samples.class_names,
            classes=self.classes,
            groups=self.groups,
        )
        return {self.name: described}

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each sample by its number; None for a stream."""
        return self.samples.key

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless the network has the labels' classes, or, where a choice is made, ImageNet's."""
        if not self.classes:
            check_classes(self.samples, num_classes)
        elif num_classes != IMAGENET_CLASSES:
            raise UserError(
                f"The network has {num_classes} classes, but a choice of ImageNet's {IMAGENET_CLASSES} is taken for "
                f"{self.samples.where}: give a network of those, or set classes to all for another set."
            )


def check_stage(name: str, stage: str) -> None:
    """Raise a UserError where a set to test on is asked for anything else."""
    command = TrainerFn(stage).value
    if command != "test":
        raise UserError(
            f"The set {name} is there to test on, and has nothing for `lit-robust {command}`: name a set with "
            "training and validation images, such as ImageNetDataModule, in a suite before all others."
        )
