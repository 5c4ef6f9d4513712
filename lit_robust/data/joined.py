"""Several training sets as one, such as ImageNet with Stylized-ImageNet."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.batch import TrainingSet
from lit_robust.core.errors import UserError
from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.loader import PlannedLoader
from lit_robust.data.same_classes import check_same_classes
from lit_robust.data.split import Split, TableSplit
from lit_robust.data.suite import RobustnessSuite
from lit_robust.data.table import join


class JoinedDataModule(RobustnessSuite):
    """Trains on all samples of all members, in one order; validates on the first, tests on each.

    With ImageNet and Stylized-ImageNet as members it is the first stage of the Shape-ResNet recipe (Geirhos et al.
    2019, table 2); the second trains on `ImageNetDataModule` from that stage's weights. Batch size, augmentation, seed
    and reading of the training are the first member's.

    Args:
        members: sets of the same classes.
        root: folder of all members' sets; null leaves each member its own.
        batch_size: samples a rank and training batch; null for the first member's.
        eval_batch_size: samples a rank and evaluation batch, of all members; null leaves each member its own.
        num_workers: processes a loader that read and decode, likewise.
    """

    def __init__(
        self,
        members: Sequence[ImageNetDataModule],
        root: str | Path | None = None,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(members, root, "error", batch_size, eval_batch_size, num_workers)
        self.joined = list(members)
        self._once: NDArray[np.int64] | None = None

    def setup(self, stage: str) -> None:
        """Set up the members that ``stage`` needs; the training all of them."""
        super().setup(stage)
        if stage == "fit":
            for member in self.joined:
                member.trainer = self.trainer
                member.setup(stage)
            self._train = join_splits([member.train_split() for member in self.joined])

    @property
    def training_set(self) -> TrainingSet:
        """All members' training samples, prepared as the first evaluates."""
        return self.joined[0].describe_training(self._train, self.joined[0].evaluation)

    def train_once(self, numbers: NDArray[np.int64]) -> None:
        """Let the training loader give these samples once, in order, prepared as the first evaluates."""
        self._once = numbers

    def train_dataloader(self) -> PlannedLoader:
        """Return the loader of all members' training samples."""
        first = self.joined[0]
        if self._once is not None:
            return first.once_loader(self._train, self._once, first.evaluation)
        return first.training_loader(self._train, first.training)


def join_splits(splits: Sequence[Split]) -> TableSplit:
    """Return several splits of the same classes as one.

    Raises:
        UserError: they have other classes, or are behind a URL.
    """
    tables = []
    for split in splits:
        if not isinstance(split, TableSplit):
            raise UserError(f"{split.where} is behind a URL and cannot be joined with others: copy it to a disk.")
        check_same_classes(splits[0], split)
        if split.classes != splits[0].classes:
            raise UserError(
                f"{split.where} has {split.classes} classes, but {splits[0].where} has {splits[0].classes}: join sets "
                "of the same classes."
            )
        tables.append(split)
    return replace(
        tables[0],
        where=" with ".join(split.where for split in tables),
        protocol={"joined": [dict(split.protocol) for split in tables]},
        table=join([split.table for split in tables]),
    )
