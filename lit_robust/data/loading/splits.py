"""A split of a set, in a folder or behind a URL: what is known of it, and how it is fed to a loader."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_robust.core.errors import DataError, UserError, check_choice, check_count
from lit_robust.data.loading.order import (
    BlockShuffle,
    EvaluationOrder,
    EvaluationStretches,
    GlobalShuffle,
    Lanes,
    Plan,
    Share,
)
from lit_robust.data.loading.samples import SampleTable, Source, TableSource
from lit_robust.data.loading.streams import RemoteShards, StreamSource, TrainingStream
from lit_robust.data.settings import check_given
from lit_robust.reference import imagenet_names, imagenet_wnids
from lit_robust.shards import IndexedReader, ShardIndex
from lit_robust.shards.fetch import Patience, is_url
from lit_robust.shards.info import GENERATED, read_info
from lit_robust.shards.labels import LabelRule
from lit_robust.shards.listing import list_remote_split
from lit_robust.shards.remote import Remote

LANES = 12  # 1, 2, 3, 4, 6 and 12 workers share them evenly.


@dataclass(frozen=True)
class Reading:
    """How shards are read.

    Attributes:
        shuffle: order of training samples: ``global``, each anywhere in the epoch; or ``block``, the shards in random
            order and the samples of a few shards shuffled together, for disks on which scattered reads are slow: each
            shard is read ahead as a whole, into the system's cache, of which it takes as much as a stream of
            ``$TMPDIR``.
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
        min_speed: bytes a second that must come from a URL, over any 30 s; 0 waits for the slowest server.
        max_seconds: for one shard from a URL, its three attempts together.
    """

    shuffle: Literal["global", "block"] = "global"
    block: int = 2048
    label: str = "auto"
    on_error: Literal["error", "skip"] = "error"
    allow_pipes: bool = False
    start_method: Literal["fork", "forkserver", "spawn"] | None = None
    min_speed: int = Patience.min_speed
    max_seconds: int = Patience.max_seconds

    def __post_init__(self) -> None:
        check_choice("reading.shuffle", self.shuffle, ("global", "block"))
        check_choice("reading.on_error", self.on_error, ("error", "skip"))
        check_given("reading.label", self.label)
        check_given("reading.allow_pipes", self.allow_pipes)
        if self.start_method is not None:
            check_choice("reading.start_method", self.start_method, ("fork", "forkserver", "spawn"))
        check_count("reading.block", self.block, 1)
        check_count("reading.max_seconds", self.max_seconds, 1)
        check_count("reading.min_speed", self.min_speed, 0)

    def lanes(self, batch_size: int) -> Lanes:
        """Return the lanes of an order in blocks."""
        return Lanes(LANES, max(self.block // (2 * batch_size), 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class Split(ABC):
    """One split of a set.

    Attributes:
        where: what to call it in a message.
        num_classes: how many classes there are, where its publisher says.
        class_names: name of each class, where its publisher says.
        protocol: plain values for the results file: what distinguishes these samples from others.
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
        if reading.shuffle == "global":
            return TableSource(self.table), GlobalShuffle(count=len(self), seed=seed, **vars(share))
        lanes = reading.lanes(share.batch_size)
        plan = BlockShuffle(lengths=self.table.lengths, block=reading.block, seed=seed, lanes=lanes, **vars(share))
        return TableSource(self.table, whole_shards=True), plan

    def evaluation(self, share: Share) -> tuple[Source, Plan]:
        """Return all samples, each valid once over all ranks."""
        return TableSource(self.table), EvaluationOrder(numbers=np.arange(len(self)), **vars(share))


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamSplit(Split):
    """A split behind a URL.

    Attributes:
        shards: of the split.
    """

    shards: RemoteShards

    def __len__(self) -> int:
        return int(self.shards.lengths.sum())

    @property
    def classes(self) -> int:
        """How many classes a network needs for these labels."""
        if self.num_classes is None:
            raise UserError(f'{self.where} does not say how many classes it has: add "num_classes" to its info file.')
        return self.num_classes

    def training(self, share: Share, reading: Reading, seed: int) -> tuple[Source, Plan]:
        """Return shuffled samples: the same number of full batches on every rank."""
        lanes = reading.lanes(share.batch_size)
        plan = BlockShuffle(lengths=self.shards.lengths, block=reading.block, seed=seed, lanes=lanes, **vars(share))
        return TrainingStream(self.shards, plan, lanes), plan

    def evaluation(self, share: Share) -> tuple[Source, Plan]:
        """Return all samples, each valid once over all ranks."""
        lanes = Lanes(evaluation_lanes(len(self), share.batch_size * share.world), 1)
        plan = EvaluationStretches(count=len(self), lanes=lanes, **vars(share))
        return StreamSource(self.shards, plan, lanes), plan


def workers_for(lanes: int, num_workers: int) -> int:
    """Return how many processes serve the lanes evenly: the largest divisor of ``lanes`` up to ``num_workers``.

    A loader hands batches to its processes in turn; so a lane always comes to the same one.
    """
    return max((count for count in range(1, num_workers + 1) if lanes % count == 0), default=0)


def evaluation_lanes(count: int, samples_a_step: int) -> int:
    """Return the lanes of an evaluation: as many as leave each at least four full batches, so that few are padded."""
    full = count // samples_a_step
    return max((lanes for lanes in range(1, LANES + 1) if LANES % lanes == 0 and full // lanes >= 4), default=1)


def open_split(root: str, name: str, split: str, reading: Reading) -> Split:
    """Open a labelled split.

    Args:
        root: folder, or URL, of all sets.
        name: subfolder of the set.
        split: name of the split.
        reading: how its shards are read.

    Raises:
        UserError: there are no such shards.
        DataError: they are defective, or a sample has no class.
    """
    if is_url(root):
        patience = Patience(reading.min_speed, reading.max_seconds)
        return open_stream(Remote(root, name, reading.allow_pipes, patience), split, reading)
    return open_table(Path(root) / name, split, reading)


def open_table(folder: Path, split: str, reading: Reading) -> TableSplit:
    """Open a labelled split in a folder.

    Raises:
        UserError: there are no such shards.
        DataError: they are defective, or a sample has no class.
    """
    index = open_index(folder, split, reading)
    without = np.flatnonzero(index.labels < 0)
    found = table_split(index, split)
    if not len(without):
        return found
    if reading.on_error == "error" or len(without) == len(index):
        first = int(without[0])
        raise DataError(
            f"{len(without)} of {len(index)} samples in {folder} ({split}) have no class, the first is "
            f"{index.key(first)} at byte {int(index.offset[first])} of {index.shard_path(first).name}: "
            f"{_label_advice(reading.label)}."
        )
    lost = [found.protocol["skipped"]] if "skipped" in found.protocol else []
    skipped = "; ".join([*lost, f"{len(without)} samples without a class"])
    return replace(
        found,
        table=found.table.select(np.flatnonzero(index.labels >= 0)),
        protocol={**found.protocol, "skipped": skipped},
    )


def open_index(folder: Path, split: str, reading: Reading) -> ShardIndex:
    """Open the index of a split, whose samples need no class.

    Raises:
        UserError: there are no such shards.
        DataError: they are defective.
    """
    try:
        return ShardIndex.open(folder, split, label=label_rule(reading.label), on_error=reading.on_error)
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable.") from error
    except UserError as error:
        if isinstance(error, DataError) or not (folder / split).is_dir():
            raise
        raise UserError(
            f"{folder / split} holds no shards: read plain folders of images with ImageFolderDataModule, or pack them "
            "with `lit-robust data shard`."
        ) from error


def table_split(index: ShardIndex, split: str) -> TableSplit:
    """Return the samples of an index."""
    lengths = np.bincount(index.shard, minlength=len(index.shards))
    protocol: dict[str, Any] = {"shards_sha256": index.digest}
    if index.defects:
        lost = "an unknown number of" if index.lost is None else index.lost
        protocol["skipped"] = f"{lost} samples (defects of the shards: {len(index.defects)})"
    entry = read_info(index.folder)[1].get("splits", {}).get(index.split, {})
    if isinstance(entry.get(GENERATED), dict):
        protocol[GENERATED] = entry[GENERATED]
    return TableSplit(
        where=f"{index.folder} ({split})",
        num_classes=index.num_classes,
        class_names=tuple(index.class_names or ()),
        protocol=protocol,
        table=SampleTable([IndexedReader(index)], index.labels, lengths),
    )


def open_stream(remote: Remote, split: str, reading: Reading) -> StreamSplit:
    """Open a split behind a URL.

    Raises:
        UserError: there is no info file that lists it with its counts.
    """
    listing = list_remote_split(remote, split)
    said = json.dumps([listing.files, listing.lengths, listing.num_classes, listing.class_names])
    return StreamSplit(
        where=f"{remote} ({split})",
        num_classes=listing.num_classes,
        class_names=tuple(listing.class_names or ()),
        protocol={"info_sha256": hashlib.sha256(said.encode()).hexdigest()},
        shards=RemoteShards(
            remote=remote,
            files=listing.files,
            lengths=np.array(listing.lengths, dtype=np.int64),
            digests=listing.digests,
            num_classes=listing.num_classes,
            rule=label_rule(reading.label).resolve(None),
            on_error=reading.on_error,
        ),
    )


def _label_advice(label: str) -> str:
    if label in ("auto", "cls"):
        return "each needs a `cls` member with its class number, or set reading.label"
    return f"reading.label is {label}, so set it to what these shards have, cls, json:FIELD or wordnet"


def label_rule(label: str) -> LabelRule:
    """Return how labels are found; WordNet ids stand for ImageNet's class numbers."""
    if label == "wordnet":
        return LabelRule("wordnet", {wnid: number for number, wnid in enumerate(imagenet_wnids())})
    return LabelRule(label)


def check_same_classes(first: Split, other: Split) -> None:
    """Refuse two splits of which a network could not learn the one and answer for the other.

    Their class names are compared, where both have some, with ImageNet's WordNet ids standing for the English names;
    else the counts that their publishers give.

    Raises:
        UserError: a class has another name, or there are more or fewer classes.
    """
    if first.class_names and other.class_names:
        names = zip_longest(_english(first.class_names), _english(other.class_names))
        for number, (here, there) in enumerate(names):
            if here != there:
                raise UserError(
                    f"{other.where} {_has(number, there)}, but {first.where} {_has(number, here)}: both must have the "
                    "same classes in the same order."
                )
    elif None not in (first.num_classes, other.num_classes) and first.num_classes != other.num_classes:
        raise UserError(
            f"{other.where} has {other.num_classes} classes, but {first.where} has {first.num_classes}: both must have "
            "the same classes."
        )


def _has(number: int, name: str | None) -> str:
    return f"has no class {number}" if name is None else f"has {name!r} as class {number}"


def _english(names: Sequence[str]) -> list[str]:
    known = dict(zip(imagenet_wnids(), imagenet_names(), strict=True))
    return [known.get(name, name) for name in names]
