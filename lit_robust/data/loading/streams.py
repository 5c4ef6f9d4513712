"""Samples from shards behind a URL, in an order that keeps to few shards at a time."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np
import torch

from lit_robust.core.errors import DataError
from lit_robust.data.loading.order import Lanes, Numbers, Plan, Request
from lit_robust.data.loading.samples import Encoded, Source
from lit_robust.shards.labels import LARGEST, NO_LABEL, LabelRule, too_high
from lit_robust.shards.remote import FetchedShard, Remote

log = logging.getLogger(__name__)


@dataclass
class Lane:
    """What one lane holds at the moment.

    Attributes:
        block: epoch and places of the batches that its shards are for.
        shards: number of the shard to the shard, or to the wait for it, those that are needed first at the front.
    """

    block: tuple[int, range] | None = None
    shards: dict[int, Future[FetchedShard]] = field(default_factory=dict)


Sample = tuple[FetchedShard, int]


@dataclass(frozen=True, eq=False)
class RemoteShards:
    """The shards of a split behind a URL.

    Attributes:
        remote: their folder.
        files: their paths in it.
        lengths: ``[S]`` samples in each.
        digests: ``[S]`` sha256 of each; None where the info file does not say.
        num_classes: labels must be below; None where unknown.
        rule: how labels are found; a resolved one.
        on_error: what to do about a defective shard or a sample without a class: ``error``, or ``skip`` it.
    """

    remote: Remote
    files: Sequence[str]
    lengths: Numbers
    digests: Sequence[str] | None
    num_classes: int | None
    rule: LabelRule
    on_error: Literal["error", "skip"]


class StreamSource(Source):
    """Fetches the shards that a block of a lane needs, and those of its next block in the background.

    A process keeps, for each of its lanes, the shards of one block and of the next, as unnamed files in ``$TMPDIR``;
    none of that in memory.

    Args:
        shards: of the split.
        plan: the order of this rank.
        lanes: of the plan.
    """

    def __init__(self, shards: RemoteShards, plan: Plan, lanes: Lanes) -> None:
        self.shards = shards
        self.plan = plan
        self.lanes = lanes
        self._starts = np.cumsum(shards.lengths) - shards.lengths
        # What the shards hold that any process of this loader has fetched, by the keys; all of them see it.
        self._contents = torch.zeros(len(shards.files), dtype=torch.int64)
        self._contents.share_memory_()  # type: ignore[no-untyped-call]
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lanes: dict[int, Lane] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._numbers: tuple[int, Numbers] | None = None

    def __getstate__(self) -> dict[str, object]:
        own = ("_process", "_lanes", "_pool", "_numbers")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def fetch(self, request: Request) -> Encoded:
        """Return the samples of the request's numbers.

        Raises:
            UserError: access to a shard is refused, or the disk is full.
            DataError: a shard cannot be had or is defective, or a sample has no class; some of it where ``on_error`` is
                ``skip``.
        """
        if self._process != os.getpid():
            # A forked process has the waits of its parent, but not the threads that would end them.
            self._reset()
        lane = self._lane(request)
        shards = np.searchsorted(self._starts, request.numbers, side="right") - 1
        found = [
            (lane.shards[shard].result(), place)
            for shard, place in zip(shards.tolist(), (request.numbers - self._starts[shards]).tolist(), strict=True)
        ]
        label = np.array([self._class_of(sample) for sample in found])
        if (label < 0).all():
            found = self.stand_ins(request, found, lane.shards)
            label = np.array([self._class_of(sample) for sample in found])
        return Encoded(
            read=lambda place: None if label[place] < 0 else found[place][0].image_bytes(found[place][1]),
            name=lambda place: found[place][0].name(found[place][1]),
            label=np.maximum(label, 0),
        )

    def stand_ins(
        self, request: Request, found: list[Sample], shards: Mapping[int, Future[FetchedShard]]
    ) -> list[Sample]:
        """Return what takes the place of a batch whose samples are all lost: here nothing does.

        Args:
            request: for the batch.
            found: its samples.
            shards: what its lane holds.
        """
        return found

    def _lane(self, request: Request) -> Lane:
        """Return the lane of a request with all shards of the request's block, or the waits for them."""
        lane = self._lanes.setdefault(request.place % self.lanes.count, Lane())
        places = self.lanes.block(request.place)
        if lane.block != (request.epoch, places):
            step = self.lanes.count
            following = range(places.stop, places.stop + len(places) * step, step)
            wanted = [*self._shards_of(request.epoch, places), *self._shards_of(request.epoch, following)]
            # The pool fetches in this order; a shard of both blocks is needed in the first.
            lane.shards = {shard: self._held(shard) or self.order(shard) for shard in dict.fromkeys(wanted)}
            lane.block = (request.epoch, places)
        return lane

    def _class_of(self, sample: Sample) -> int:
        """Return the class of a sample, or -1 where it is lost and may be."""
        shard, place = sample
        # What is lost of a defective shard takes the place of its last samples; only where that is allowed.
        if place >= len(shard):
            return NO_LABEL
        label = int(shard.scan.label[place])
        if label < 0:
            if (shard.scan.label < 0).all():
                raise DataError(f"No sample of {shard.where} has a class: give each a `cls` member with its number.")
            error = DataError(f"The sample {shard.name(place)} has no class: give it a `cls` member with its number.")
        elif self.shards.num_classes is not None and label >= self.shards.num_classes:
            error = DataError(f"The sample {shard.name(place)} has {too_high(label, self.shards.num_classes)}.")
        else:
            return label
        if self.shards.on_error == "error":
            raise error
        log.warning("%s Left out, as on_error is skip.", error)
        return NO_LABEL

    def _held(self, shard: int) -> Future[FetchedShard] | None:
        """Return a shard that any lane of this process holds; a small set's lanes share few shards."""
        return next((lane.shards[shard] for lane in self._lanes.values() if shard in lane.shards), None)

    def order(self, shard: int) -> Future[FetchedShard]:
        """Return the wait for a shard, which begins to be fetched."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="shards")
        return self._pool.submit(self._fetched, shard)

    def _fetched(self, shard: int) -> FetchedShard:
        sha256 = None if self.shards.digests is None else self.shards.digests[shard]
        count = int(self.shards.lengths[shard])
        found = self.shards.remote.shard(
            self.shards.files[shard], count, sha256, self.shards.rule, self.shards.on_error
        )
        if len(found):
            digest = hashlib.sha256(b"\0".join(found.scan.keys)).digest()
            contents = self._contents.numpy()
            contents[shard] = int.from_bytes(digest[:8], "little") >> 1 or 1
            same = np.flatnonzero(contents == contents[shard])
            if len(same) > 1:
                names = " and ".join(self.shards.remote.shown(self.shards.files[one]) for one in same[:2].tolist())
                raise DataError(f"{names} hold the same samples, so others are missing: upload each under its name.")
        return found

    def _shards_of(self, epoch: int, places: range) -> list[int]:
        """Return the shards that batches need, in the order in which they need them."""
        if self._numbers is None or self._numbers[0] != epoch:
            self._numbers = (epoch, self.plan.of_epoch(epoch)[0])
        numbers = self._numbers[1][places.start : min(places.stop, self.plan.batches) : places.step].ravel()
        shards, first = np.unique(np.searchsorted(self._starts, numbers, side="right") - 1, return_index=True)
        ordered: list[int] = shards[np.argsort(first)].tolist()
        return ordered


class TrainingStream(StreamSource):
    """Never an empty batch: where every sample of one is lost, others of the shards at hand are seen once more.

    Every rank must take every step, and there is nothing to be learnt from a batch of blank images.
    """

    def stand_ins(
        self, request: Request, found: list[Sample], shards: Mapping[int, Future[FetchedShard]]
    ) -> list[Sample]:
        """Return as many readable samples, from the lane's shards, or else from the first shard that has some.

        Raises:
            DataError: no shard has any.
        """
        others = (self.order(shard) for shard in range(len(self.shards.files)) if shard not in shards)
        for shard in (wait.result() for wait in chain(shards.values(), others)):
            good = (shard.scan.label >= 0) & (shard.scan.label < (self.shards.num_classes or LARGEST))
            if good.any():
                log.warning("All samples of a batch are lost, the first is %s: others are seen twice.", _name(found[0]))
                places = np.roll(np.flatnonzero(good), -request.place * len(found))
                return [(shard, place) for place in np.resize(places, len(found)).tolist()]
        raise DataError(f"No shard of {self.shards.remote} has a sample that can be read: upload them again.")


def _name(sample: Sample) -> str:
    return sample[0].name(sample[1])
