"""Several data modules as one: trained on the first, tested on any of them in one run."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from lit_robust.batch import EvaluationSet
from lit_robust.data.loader import PlannedLoader
from lit_robust.data.module import RobustDataModule, ShardDataModule
from lit_robust.errors import UserError


class RobustnessSuite(RobustDataModule):
    """Composes data modules; each keeps the names of its test loaders.

    Args:
        members: the data modules; ``fit``, ``validate`` and ``predict`` use the first one.
        root: folder of all members' sets; null leaves each member its own.
    """

    def __init__(self, members: Sequence[ShardDataModule], root: Path | None = None) -> None:
        super().__init__()
        if not members:
            raise UserError("The suite has no members: name at least one data module.")
        self.members = list(members)
        if root is not None:
            for member in self.members:
                member.root = Path(root)

    def setup(self, stage: str) -> None:
        """Set up the members that ``stage`` needs."""
        for member in self._used(stage):
            member.trainer = self.trainer
            member.setup(stage)

    def _used(self, stage: str) -> list[ShardDataModule]:
        return self.members if stage == "test" else self.members[:1]

    @cached_property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """Name to description of every member's test sets."""
        sets: dict[str, EvaluationSet] = {}
        for member in self.members:
            for name, described in member.evaluation_sets.items():
                if name in sets:
                    raise UserError(f"Two members of the suite name a test set {name!r}: give one another name.")
                sets[name] = described
        return sets

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
        return {name: loader for member in self.members for name, loader in member.test_dataloader().items()}

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless a network of ``num_classes`` classes fits every member in use."""
        for member in self._used(self.trainer.state.fn or "test" if self.trainer else "test"):
            member.check_classes(num_classes)
