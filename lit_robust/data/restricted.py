"""Restricted ImageNet: 9 super-classes of ImageNet (Engstrom et al. 2019, table 1; Tsipras et al. 2019)."""

from pathlib import Path

import numpy as np

from lit_robust.core.errors import UserError
from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.shard_splits import open_table
from lit_robust.data.split import Reading, Split, TableSplit
from lit_robust.data.transforms import EvaluationCrop, TrainingCrop
from lit_robust.reference import restricted_imagenet
from lit_robust.shards.address import is_url, shown


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
