"""ImageNet-A: natural images that ResNet-50 gets wrong, in 200 of ImageNet's classes (Hendrycks et al. 2021)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.splits import Reading, Split, TableSplit
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.settings import check_choice
from lit_robust.reference import imagenet_subset

NAME = "imagenet-a"


class ImageNetADataModule(SingleSetDataModule):
    """Shards in ``<root>/imagenet-a/``, split ``test``; the test loader is ``imagenet-a``.

    Labels are ImageNet's class numbers. A decision is taken among the 200 classes, as in
    hendrycks/natural-adv-examples ``eval_many_models.py``; the test set names them.

    Args:
        root: folder that holds ``imagenet-a/``.
        classes: ``imagenet-a`` for its 200 classes, ``all`` for those of the network (the toy data).
        evaluation: resize and crop.
        eval_batch_size: samples a rank and batch.
        num_workers: processes that read and decode; 0 does both in the main process.
        name: subfolder of ``root``, and name of the test loader.
        reading: how shards are read.
    """

    def __init__(
        self,
        root: str | Path = "data",
        classes: Literal["imagenet-a", "all"] = "imagenet-a",
        evaluation: EvaluationCrop = EvaluationCrop(),
        eval_batch_size: int = 256,
        num_workers: int = 8,
        name: str = NAME,
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, name, evaluation, eval_batch_size, num_workers, reading)
        check_choice("classes", classes, (NAME, "all"))
        self.classes = () if classes == "all" else imagenet_subset(classes)

    def open_samples(self) -> Split:
        """Read the shard index."""
        split = self.open("test")
        if self.classes:
            if not isinstance(split, TableSplit):
                raise UserError(f"The labels of {split.where} cannot be checked in advance: copy the shards to a disk.")
            check_labels(split, self.classes)
        return split


def check_labels(split: TableSplit, classes: Sequence[int]) -> None:
    """Raise a DataError where a label is none of ``classes``; shards numbered 0 to 199 would be mistaken otherwise."""
    outside = np.flatnonzero(~np.isin(split.table.label, classes))
    if len(outside):
        number = int(outside[0])
        raise DataError(
            f"{split.where} has {split.table.key(number)} in class {int(split.table.label[number])}, which is none of "
            "ImageNet-A's 200: pack the shards with `--labels imagenet`, so that labels are ImageNet's class numbers, "
            "or set classes to all for another set."
        )
