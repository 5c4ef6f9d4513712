"""A split of a set: what is known of it, and how it is fed to a loader."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_robust.data.plan import BlockShuffle, Lanes, Plan
from lit_robust.data.scattered import EvaluationOrder, GlobalShuffle
from lit_robust.data.settings import check_at_least, check_choice, check_given
from lit_robust.data.source import Source, TableSource
from lit_robust.data.table import SampleTable

LANES = 12  # 1, 2, 3, 4, 6 and 12 workers share them evenly.


@dataclass(frozen=True)
class Reading:
    """How shards are read.

    Attributes:
        shuffle: order of training samples: ``global``, each anywhere in the epoch; or ``block``, the shards in random
            order and the samples of a few shards shuffled together, for file systems on which scattered reads are slow.
            What comes from a URL is always shuffled in blocks.
        block: samples that are shuffled together, where the order is in blocks: those of as many whole shards as hold
            this many. A rank reads in 12 places at once. In each it needs the shards of at most two blocks, so of a
            stream at most 24 x (``block`` + one shard's samples) lie in its ``$TMPDIR``. More samples mix better.
        label: where the class comes from: ``auto`` (the ``cls`` member, or the json field that the info file names),
            ``cls``, ``json:FIELD``, or ``wordnet`` (the first WordNet id in the key, as its ImageNet class number).
        on_error: what to do about a broken shard or image: ``error`` ends the run and names it; ``skip`` leaves the
            samples out and counts them in the results. In training the loader's batches stay full, and as many on every
            rank; a network's step then sees what of its batch could be read, and a warning counts the rest.
        allow_pipes: run the shell command of a root that begins with ``pipe:``.
        start_method: how worker processes start; null takes Python's default.
    """

    shuffle: Literal["global", "block"] = "global"
    block: int = 2048
    label: str = "auto"
    on_error: Literal["error", "skip"] = "error"
    allow_pipes: bool = False
    start_method: Literal["fork", "forkserver", "spawn"] | None = None

    def __post_init__(self) -> None:
        check_choice("reading.shuffle", self.shuffle, ("global", "block"))
        check_choice("reading.on_error", self.on_error, ("error", "skip"))
        check_given(**{"reading.label": self.label, "reading.allow_pipes": self.allow_pipes})
        if self.start_method is not None:
            check_choice("reading.start_method", self.start_method, ("fork", "forkserver", "spawn"))
        check_at_least(1, **{"reading.block": self.block})

    def lanes(self, batch_size: int) -> Lanes:
        """Return the lanes of an order in blocks."""
        return Lanes(LANES, max(self.block // (2 * batch_size), 1))


@dataclass(frozen=True)
class Share:
    """Which part of every batch is this process's.

    Attributes:
        batch_size: samples a rank and batch.
        rank: this process, 0 to ``world - 1``.
        world: number of processes.
    """

    batch_size: int
    rank: int
    world: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Split(ABC):
    """One split of a set.

    Attributes:
        where: what to call it in a message.
        num_classes: how many classes there are, where its publisher says.
        class_names: name of each class, where its publisher says.
        protocol: plain values for the results file: what tells these samples from others.
    """

    where: str
    num_classes: int | None
    class_names: tuple[str, ...]
    protocol: Mapping[str, Any]

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many classes a network needs for these labels."""

    @property
    def key(self) -> Callable[[int], str] | None:
        """What gives the name of each sample by its number; None where nothing is known beforehand, as of streams."""
        return None

    @abstractmethod
    def training(self, share: Share, reading: Reading, seed: int) -> tuple[Source, Plan]:
        """Return shuffled samples: the same number of full batches on every rank."""

    @abstractmethod
    def evaluation(self, share: Share) -> tuple[Source, Plan]:
        """Return all samples, each valid once over all ranks."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TableSplit(Split):
    """A split whose samples can be read in any order.

    Attributes:
        table: its samples.
    """

    table: SampleTable

    def __len__(self) -> int:
        return len(self.table)

    @property
    def classes(self) -> int:
        """How many classes a network needs for these labels."""
        return max(int(self.table.label.max()) + 1, self.num_classes or 0)

    @property
    def key(self) -> Callable[[int], str]:
        """What gives the name of each sample by its number."""
        return self.table.key

    def training(self, share: Share, reading: Reading, seed: int) -> tuple[Source, Plan]:
        """Return shuffled samples: the same number of full batches on every rank."""
        mine = {"batch_size": share.batch_size, "rank": share.rank, "world": share.world}
        if reading.shuffle == "global":
            return TableSource(self.table), GlobalShuffle(count=len(self), seed=seed, **mine)
        lanes = reading.lanes(share.batch_size)
        plan = BlockShuffle(lengths=self.table.lengths, block=reading.block, seed=seed, lanes=lanes, **mine)
        return TableSource(self.table), plan

    def evaluation(self, share: Share) -> tuple[Source, Plan]:
        """Return all samples, each valid once over all ranks."""
        plan = EvaluationOrder(count=len(self), batch_size=share.batch_size, rank=share.rank, world=share.world)
        return TableSource(self.table), plan
