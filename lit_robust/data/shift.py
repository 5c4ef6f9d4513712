"""Natural shifts of ImageNet: other pictures of all or some of its classes, read and decided by their protocol."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.splits import Split, TableSplit
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.settings import check_given
from lit_robust.reference import imagenet_subset, imagenet_wnids


@dataclass(eq=False, repr=False)
class ShiftDataModule(SingleSetDataModule):
    """Shards in ``<root>/<name>/``, labelled with ImageNet's class numbers; the test loader has that name.

    ImageNet-R is ``name: imagenet-r, classes: imagenet-r``; ImageNet-Sketch and the three of ImageNet-V2 have all
    classes. Folders of WordNet ids become such shards by ``lit-robust data shard --labels imagenet``. A decision is
    taken among the set's classes, where it has some of ImageNet's: the others' logits are left out before the softmax
    (hendrycks/imagenet-r ``eval.py``, modestyachts/imagenet-testbed ``class_sublist``).

    Attributes:
        classes: ``all`` of the network's; the 200 of ``imagenet-a`` or ``imagenet-r``; or ImageNet's class numbers.
        evaluation: resize and crop.
        split: of the shards.
    """

    classes: str | Sequence[int] = "all"
    evaluation: EvaluationCrop = EvaluationCrop()
    _: KW_ONLY
    name: str
    split: str = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given("split", self.split)
        self.crop, self.split_name = self.evaluation, self.split
        self.decided_among = class_numbers(self.classes)

    def open_samples(self) -> Split:
        """Read the shard index.

        Raises:
            DataError: a label is not one of the classes.
        """
        split = self.open(self.split)
        if self.decided_among:
            if not isinstance(split, TableSplit):
                raise UserError(f"The labels of {split.where} cannot be checked in advance: copy the shards to a disk.")
            check_labels(split, self.decided_among, self.name)
        return split


def class_numbers(classes: str | Sequence[int]) -> tuple[int, ...]:
    """Return ImageNet's class numbers, ascending: of a name, or as they are given; none for ``all``.

    Raises:
        UserError: there is no such name or class, or one is given twice.
    """
    if classes == "all":
        return ()
    if isinstance(classes, str):
        return imagenet_subset(classes)
    numbers = tuple(sorted(classes))
    count = len(imagenet_wnids())
    if len(set(numbers)) < len(numbers) or not numbers or not 0 <= numbers[0] <= numbers[-1] < count:
        raise UserError(f"classes holds {len(numbers)} numbers: give each of some from 0 to {count - 1} once.")
    return numbers


def check_labels(split: TableSplit, classes: Sequence[int], name: str) -> None:
    """Raise a DataError where a label is not one of ``classes``, as in shards numbered 0 to 199."""
    outside = np.flatnonzero(~np.isin(split.table.label, classes))
    if len(outside):
        number = int(outside[0])
        raise DataError(
            f"{split.where} has {split.table.key(number)} in class {int(split.table.label[number])}, not one of "
            f"{name}'s {len(classes)}: pack the shards with `--labels imagenet`, so that labels are ImageNet's class "
            "numbers, or set classes to all for another set."
        )
