"""Samples from shards behind a URL, in an order that keeps to few shards at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lit_robust.data.plan import BlockShuffle, EvaluationStretches, Lanes, Numbers, Plan, Request
from lit_robust.data.source import Encoded, Source
from lit_robust.data.split import LANES, Reading, Share, Split
from lit_robust.errors import DataError, UserError
from lit_robust.shards.labels import LabelRule
from lit_robust.shards.remote import FetchedShard, Remote


@dataclass
class Lane:
    """What one lane holds at the moment.

    Attributes:
        epoch: that its shards belong to.
        shards: number of the shard to the shard, or to the wait for it.
    """

    epoch: int = -1
    shards: dict[int, Future[FetchedShard]] = field(default_factory=dict)


class StreamSource(Source):
    """Fetches the shards that a block of a lane needs, and those of its next block in the background.

    A process keeps, for each of its lanes, the shards of one block and of the next, as unnamed files in ``$TMPDIR``;
    none of that in memory.

    Args:
        remote: the folder behind a URL.
        files: paths of the shards in it.
        lengths: ``[S]`` samples in each shard.
        plan: the order of this rank.
        lanes: of the plan.
        num_classes: labels must be below; None where unknown.
        rule: how labels are found; a resolved one.
        on_error: what to do about a defective shard: ``error``, or ``skip`` what cannot be read of it.
    """

    def __init__(
        self,
        remote: Remote,
        files: Sequence[str],
        lengths: Numbers,
        plan: Plan,
        lanes: Lanes,
        num_classes: int | None,
        rule: LabelRule,
        on_error: Literal["error", "skip"],
    ) -> None:
        self.remote = remote
        self.files = files
        self.lengths = lengths
        self.plan = plan
        self.lanes = lanes
        self.num_classes = num_classes
        self.rule = rule
        self.on_error = on_error
        self._starts = np.cumsum(lengths) - lengths
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lanes: dict[int, Lane] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._numbers: tuple[int, Numbers] | None = None

    def __getstate__(self) -> dict[str, object]:
        kept = ("remote", "files", "lengths", "plan", "lanes", "num_classes", "rule", "on_error", "_starts")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def fetch(self, request: Request) -> Encoded:
        """Return the samples of the request's numbers."""
        if self._process != os.getpid():
            # A forked process has the waits of its parent, but not the threads that would end them.
            self._reset()
        places = self.lanes.block(request.place)
        lane = self._lanes.setdefault(request.place % self.lanes.count, Lane())
        if lane.epoch != request.epoch:
            lane.epoch, lane.shards = request.epoch, {}
        needed = self._shards_of(request.epoch, places)
        step = self.lanes.count
        following = self._shards_of(request.epoch, range(places.stop, places.stop + len(places) * step, step))
        wanted = [*needed, *(shard for shard in following if shard not in needed)]
        lane.shards = {shard: self._held(shard) or self._order(shard) for shard in wanted}
        shards = np.searchsorted(self._starts, request.numbers, side="right") - 1
        found = [
            (lane.shards[shard].result(), place)
            for shard, place in zip(shards.tolist(), (request.numbers - self._starts[shards]).tolist(), strict=True)
        ]
        # What is lost of a defective shard takes the place of its last samples; only where that is allowed.
        lost = np.array([place >= len(shard) for shard, place in found])
        label = np.array([0 if gone else shard.label(place) for gone, (shard, place) in zip(lost, found, strict=True)])
        wrong = np.flatnonzero((label < 0) | (label >= (self.num_classes or np.iinfo(np.int64).max)))
        if len(wrong):
            shard, place = found[wrong[0]]
            what = "no class" if label[wrong[0]] < 0 else f"class {label[wrong[0]]}, but the set has {self.num_classes}"
            raise DataError(f"The sample {shard.name(place)} has {what}: mend its `cls` member.")
        return Encoded(
            read=lambda place: None if lost[place] else found[place][0].image_bytes(found[place][1]),
            name=lambda place: found[place][0].name(found[place][1]),
            label=label,
        )

    def _held(self, shard: int) -> Future[FetchedShard] | None:
        """Return a shard that any lane of this process holds; a small set's lanes share few shards."""
        return next((lane.shards[shard] for lane in self._lanes.values() if shard in lane.shards), None)

    def _order(self, shard: int) -> Future[FetchedShard]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="shards")
        count = int(self.lengths[shard])
        return self._pool.submit(self.remote.shard, self.files[shard], count, self.rule, self.on_error)

    def _shards_of(self, epoch: int, places: range) -> list[int]:
        if self._numbers is None or self._numbers[0] != epoch:
            self._numbers = (epoch, self.plan.of_epoch(epoch)[0])
        inside = list(range(places.start, min(places.stop, self.plan.batches), places.step))
        numbers = self._numbers[1][inside].ravel()
        shards: list[int] = np.unique(np.searchsorted(self._starts, numbers, side="right") - 1).tolist()
        return shards


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamSplit(Split):
    """A split behind a URL.

    Attributes:
        remote: its folder.
        files: paths of its shards in the folder.
        lengths: ``[S]`` samples in each shard.
        rule: how labels are found; a resolved one.
        on_error: what to do about a defective shard.
    """

    remote: Remote
    files: Sequence[str]
    lengths: Numbers
    rule: LabelRule
    on_error: Literal["error", "skip"]

    def __len__(self) -> int:
        return int(self.lengths.sum())

    @property
    def classes(self) -> int:
        """How many classes a network needs for these labels."""
        if self.num_classes is None:
            raise UserError(f'{self.where} does not say how many classes it has: add "num_classes" to its info file.')
        return self.num_classes

    def training(self, share: Share, reading: Reading, seed: int) -> tuple[Source, Plan]:
        """Return shuffled samples: the same number of full batches on every rank."""
        mine = {"batch_size": share.batch_size, "rank": share.rank, "world": share.world}
        lanes = reading.lanes(share.batch_size)
        plan = BlockShuffle(lengths=self.lengths, seed=seed, lanes=lanes, **mine)
        return self._source(plan, lanes), plan

    def evaluation(self, share: Share) -> tuple[Source, Plan]:
        """Return all samples, each valid once over all ranks."""
        mine = {"batch_size": share.batch_size, "rank": share.rank, "world": share.world}
        lanes = Lanes(evaluation_lanes(len(self), share.batch_size * share.world), 1)
        plan = EvaluationStretches(count=len(self), lanes=lanes, **mine)
        return self._source(plan, lanes), plan

    def _source(self, plan: Plan, lanes: Lanes) -> StreamSource:
        return StreamSource(
            self.remote, self.files, self.lengths, plan, lanes, self.num_classes, self.rule, self.on_error
        )


def workers_for(lanes: int, num_workers: int) -> int:
    """Return how many processes serve the lanes evenly: the largest divisor of ``lanes`` up to ``num_workers``.

    A loader hands batches to its processes in turn; so a lane always comes to the same one.
    """
    return max((count for count in range(1, num_workers + 1) if lanes % count == 0), default=0)


def evaluation_lanes(count: int, samples_a_step: int) -> int:
    """Return the lanes of an evaluation: as many as leave each at least four full batches, so that few are padded."""
    full = count // samples_a_step
    return max((lanes for lanes in range(1, LANES + 1) if LANES % lanes == 0 and full // lanes >= 4), default=1)
