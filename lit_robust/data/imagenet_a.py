"""ImageNet-A: natural images that ResNet-50 gets wrong, in 200 of ImageNet's classes (Hendrycks et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.splits import Split, TableSplit
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.settings import check_choice
from lit_robust.reference import imagenet_subset

NAME = "imagenet-a"


@dataclass(eq=False, repr=False)
class ImageNetADataModule(SingleSetDataModule):
    """Shards in ``<root>/imagenet-a/``, split ``test``; the test loader is ``imagenet-a``.

    Labels are ImageNet's class numbers. A decision is taken among the 200 classes, as in
    hendrycks/natural-adv-examples ``eval_many_models.py``; the test set names them.

    Attributes:
        classes: ``imagenet-a`` for its 200 classes, ``all`` for those of the network (the toy data).
        evaluation: resize and crop.
    """

    classes: Literal["imagenet-a", "all"] = "imagenet-a"
    evaluation: EvaluationCrop = EvaluationCrop()
    name: str = field(default=NAME, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("classes", self.classes, (NAME, "all"))
        self.crop = self.evaluation
        self.decided_among = () if self.classes == "all" else imagenet_subset(self.classes)

    def open_samples(self) -> Split:
        """Read the shard index."""
        split = self.open("test")
        if self.decided_among:
            if not isinstance(split, TableSplit):
                raise UserError(f"The labels of {split.where} cannot be checked in advance: copy the shards to a disk.")
            check_labels(split, self.decided_among)
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
