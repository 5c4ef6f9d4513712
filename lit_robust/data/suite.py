"""Several data modules as one: trained on the first, tested on any of them in one run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from lit_robust.core.batch import EvaluationSet, TrainingSet
from lit_robust.core.errors import UserError, check_choice
from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.samples import join
from lit_robust.data.loading.splits import Split, TableSplit, check_same_classes
from lit_robust.data.module import RobustDataModule, ShardDataModule
from lit_robust.data.settings import NumWorkers

log = logging.getLogger(__name__)


class RobustnessSuite(RobustDataModule):
    """Composes data modules; each keeps the name of its test loader.

    Args:
        members: the data modules; ``fit``, ``validate`` and ``predict`` use the first one.
        root: folder, or URL, of all members' sets; null leaves each member its own.
        missing: what a test does about a set whose folder is not there: ``error``, or ``skip``, which leaves out the
            set and its evaluations, and names them. A set that is there but defective is an error in either case.
        batch_size: samples a rank and training batch, of all members; null leaves each member its own.
        eval_batch_size: samples a rank and evaluation batch, likewise.
        num_workers: processes a loader that read and decode, likewise.
    """

    def __init__(
        self,
        members: Sequence[ShardDataModule],
        root: str | Path | None = None,
        missing: Literal["error", "skip"] = "error",
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: NumWorkers | None = None,
    ) -> None:
        super().__init__()
        check_choice("missing", missing, ("error", "skip"))
        if isinstance(members, RobustDataModule) or not all(isinstance(one, RobustDataModule) for one in members):
            raise UserError("A suite's members are a list of data modules, such as [ImageNetDataModule(root)].")
        if not members:
            raise UserError("The suite has no members: name at least one data module.")
        names = [member.name for member in members]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"Two members of the suite name a test set {repeated!r}: give one another name.")
        shared = {
            "root": root,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "num_workers": num_workers,
        }
        given = {name: value for name, value in shared.items() if value is not None}
        self.members = [_told(member, given) if given else member for member in members]
        self.missing = missing
        self._missing: dict[str, str] = {}

    def setup(self, stage: str) -> None:
        """Set up the members that ``stage`` needs."""
        if self.missing == "skip" and stage == "test":
            absent = {
                member.name: next(folder for folder in member.folders() if not folder.is_dir())
                for member in self._used(stage)
                if not all(folder.is_dir() for folder in member.folders())
            }
            reasons = {name: f"there is no folder {folder}" for name, folder in absent.items()}
            if len(absent) == len(self.members):
                root = Path(self.members[0].root)
                one = any(root.glob("*.tar"))
                fix = f"{root} holds the shards of one set, so give the folder above it" if one else "check the root"
                raise UserError(f"No set of the suite is there, {next(iter(reasons.values()))}: {fix}.")
            if absent:
                log.warning("Left out, as they are not there: %s.", ", ".join(map(str, absent.values())))
            self._missing |= reasons
        elif stage == "test":
            for folder in (folder for member in self._used(stage) for folder in member.folders()):
                if not folder.is_dir():
                    raise UserError(
                        f"There is no folder {folder}, which this recipe tests on: check the root, or leave out what "
                        "is missing, by --data.missing skip."
                    )
        for member in self._used(stage):
            member.trainer, member.limit = self.trainer, self.limit
            member.setup(stage)

    def close(self) -> None:
        """End the processes of the members' loaders."""
        for member in self.members:
            member.close()

    def _used(self, stage: str) -> list[ShardDataModule]:
        members = self.members if stage == "test" else self.members[:1]
        return [member for member in members if member.name not in self._missing]

    @property
    def missing_sets(self) -> Mapping[str, str]:
        """Name of every test set that is left out because it is not there, to the sentence that says so."""
        return self._missing

    @cached_property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """Name to description of every member's test sets."""
        return {name: described for member in self._used("test") for name, described in member.evaluation_sets.items()}

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each sample of a member's test set by its number; None where unknown."""
        return next((member.sample_key(name) for member in self._used("test") if member.name == name), None)

    @property
    def training_set(self) -> TrainingSet:
        """The first member's training samples."""
        return self.members[0].training_set

    def train_dataloader(self) -> PlannedLoader:
        """Return the first member's training loader."""
        loader: PlannedLoader = self.members[0].train_dataloader()
        return loader

    def val_dataloader(self) -> PlannedLoader:
        """Return the first member's validation loader."""
        loader: PlannedLoader = self.members[0].val_dataloader()
        return loader

    def predict_dataloader(self) -> PlannedLoader:
        """Return the first member's prediction loader."""
        loader: PlannedLoader = self.members[0].predict_dataloader()
        return loader

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return all members' test loaders by name."""
        return {name: loader for member in self._used("test") for name, loader in member.test_dataloader().items()}

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless a network of ``num_classes`` classes fits every member in use."""
        for member in self._used(self.trainer.state.fn or "test" if self.trainer else "test"):
            member.check_classes(num_classes)


def _told(member: ShardDataModule, settings: Mapping[str, Any]) -> ShardDataModule:
    """Return a member made anew, with those of the settings that it has."""
    names = {field.name for field in fields(member)}
    return replace(member, **{name: value for name, value in settings.items() if name in names})


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
        num_workers: NumWorkers | None = None,
    ) -> None:
        super().__init__(members, root, "error", batch_size, eval_batch_size, num_workers)
        self.joined = cast(list[ImageNetDataModule], self.members)

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

    def train_dataloader(self) -> PlannedLoader:
        """Return the loader of all members' training samples."""
        return self.joined[0].training_loader(self._train)


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
