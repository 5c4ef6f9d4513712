"""Which samples make up which batch: pure functions of seed, epoch, rank and world size."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.seeds import stream_seed

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Request:
    """One batch to load.

    Attributes:
        epoch: the epoch it belongs to.
        place: which batch of this rank in that epoch, from 0.
        numbers: ``[B]`` sample numbers.
        valid: ``[B]``, false for the copies that fill up an evaluation's last batches.
    """

    epoch: int
    place: int
    numbers: Numbers
    valid: Mask


@dataclass(frozen=True)
class Lanes:
    """How the batches of a rank fall into sequences that each pass through the shards once.

    Batch ``b`` belongs to lane ``b % count``. A lane keeps to few shards at a time, so a worker process that serves it
    needs no others; and because the lanes do not depend on the number of workers, neither does the order.

    Attributes:
        count: number of lanes.
        block_batches: batches of a lane whose shards are fetched together.
    """

    count: int
    block_batches: int

    def block(self, place: int) -> range:
        """Return the places of all batches that are fetched together with the one in ``place``; some may be too high.

        First blocks differ in length from lane to lane, so that the lanes do not all come to a new block at once.
        """
        lane, turn = place % self.count, place // self.count
        shift = (self.block_batches * lane) // self.count
        first = (turn + shift) // self.block_batches * self.block_batches - shift
        turns = range(max(first, 0), first + self.block_batches)
        return range(turns.start * self.count + lane, turns.stop * self.count + lane, self.count)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan(Share, ABC):
    """The batches of one rank."""

    @property
    @abstractmethod
    def batches(self) -> int:
        """How many batches every epoch has, the same on every rank."""

    @abstractmethod
    def of_epoch(self, epoch: int) -> tuple[Numbers, Mask]:
        """Return the sample numbers ``[batches, batch_size]`` of an epoch, and which of them count."""

    @property
    def order(self) -> Mapping[str, int | str]:
        """What the order follows from, apart from the epoch; the same on every rank."""
        return {}

    @property
    def lane_count(self) -> int | None:
        """How many lanes the batches fall into; None where any process may load any batch."""
        return None

    def requests(self, epoch: int, start: int = 0) -> Iterator[Request]:
        """Give an epoch's batches from the one in place ``start``, each as it is asked for."""
        # A million batches of one sample are 10 MB as arrays, and half a GB as a list of requests.
        numbers, valid = self.of_epoch(epoch)
        for place in range(start, self.batches):
            yield Request(epoch, place, numbers[place], valid[place])


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockShuffle(Plan):
    """Training batches, each sample near others of a few shards.

    The shards in random order fall into groups, each of as many shards as hold ``block`` samples. The samples of a
    group are shuffled together, so they meet in other batches in every epoch. All groups make one sequence. It is cut
    into one stretch for each lane of each rank. So a lane reads its shards once, one group after another; every rank
    has the same number of full batches; and no sample comes twice. What is left over at the end is dropped for this
    epoch.

    Attributes:
        lengths: ``[S]`` samples in each shard; sample numbers count through the shards in this order.
        block: samples that a group has at least; it has fewer than those and one shard's more.
        seed: the data's seed.
        lanes: of each rank.
    """

    lengths: Numbers
    block: int
    seed: int
    lanes: Lanes

    @property
    def batches(self) -> int:
        """How many batches every epoch has, the same on every rank."""
        return int(self.lengths.sum()) // (self.batch_size * self.world)

    @property
    def lane_count(self) -> int | None:
        """How many lanes the batches fall into; None where any process may load any batch."""
        return self.lanes.count

    def of_epoch(self, epoch: int) -> tuple[Numbers, Mask]:
        """Return the sample numbers ``[batches, batch_size]`` of an epoch; all count."""
        sequence = self._sequence(random_stream(self.seed, "order", epoch))
        result = np.empty((self.batches, self.batch_size), dtype=np.int64)
        start = self.batches * self.batch_size * self.rank
        for lane in range(min(self.lanes.count, self.batches)):
            places = np.arange(lane, self.batches, self.lanes.count)
            end = start + len(places) * self.batch_size
            result[places] = sequence[start:end].reshape(-1, self.batch_size)
            start = end
        return all_count(result)

    def _sequence(self, random: np.random.Generator) -> Numbers:
        shards = random.permutation(len(self.lengths))
        sequence = _concatenated(self.lengths, shards)
        begin = 0
        for end in np.cumsum(self.lengths[shards]).tolist():
            if end - begin >= self.block or end == len(sequence):
                random.shuffle(sequence[begin:end])
                begin = end
        return sequence

    @property
    def order(self) -> Mapping[str, int | str]:
        """What the order follows from, apart from the epoch; the same on every rank."""
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes()).hexdigest()[:16]
        sizes = {"samples": int(self.lengths.sum()), "batch_size": self.batch_size, "ranks": self.world}
        blocks = {"block": self.block, "lanes": self.lanes.count}
        return {**sizes, "seed": self.seed, "shuffle": "block", **blocks, "shard_lengths_sha256": digest}


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationStretches(Plan):
    """Evaluation batches, each sample valid exactly once over all ranks; every lane has a stretch of neighbours.

    Every rank gets the same number of full batches; what a stretch does not fill repeats its last sample with a false
    mask.

    Attributes:
        count: samples in the data set.
        lanes: of each rank.
    """

    count: int
    lanes: Lanes

    @property
    def batches(self) -> int:
        """How many batches there are, the same on every rank."""
        return -(-self.count // (self.batch_size * self.world * self.lanes.count)) * self.lanes.count

    @property
    def lane_count(self) -> int | None:
        """How many lanes the batches fall into; None where any process may load any batch."""
        return self.lanes.count

    def of_epoch(self, epoch: int) -> tuple[Numbers, Mask]:
        """Return the sample numbers ``[batches, batch_size]``, and which of them count."""
        parts = self.world * self.lanes.count
        bounds = np.arange(parts + 1) * self.count // parts
        mine = slice(self.rank * self.lanes.count, (self.rank + 1) * self.lanes.count)
        starts, ends = bounds[:-1][mine, None], bounds[1:][mine, None]
        turns = self.batches // self.lanes.count
        # [lanes, turns * batch_size], to be taken turn by turn through the lanes.
        places = starts + np.arange(turns * self.batch_size)
        shape = (self.lanes.count, turns, self.batch_size)
        numbers = np.minimum(places, np.maximum(ends - 1, 0)).reshape(shape).transpose(1, 0, 2)
        valid = (places < ends).reshape(shape).transpose(1, 0, 2)
        return numbers.reshape(-1, self.batch_size), valid.reshape(-1, self.batch_size)


def _concatenated(lengths: Numbers, order: Numbers) -> Numbers:
    """Return the sample numbers of the shards in ``order``, one after another."""
    starts = np.cumsum(lengths) - lengths
    sizes = lengths[order]
    ends = np.cumsum(sizes)
    numbers: Numbers = np.arange(int(ends[-1])) + np.repeat(starts[order] - (ends - sizes), sizes)
    return numbers


def all_count(numbers: Numbers) -> tuple[Numbers, Mask]:
    """Return sample numbers with the mask of training, where each counts."""
    return numbers, np.ones(numbers.shape, dtype=bool)


def random_stream(seed: int, stream: str, *numbers: int) -> np.random.Generator:
    """Return the generator of one named stream of draws."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, stream, *numbers)))


@dataclass(frozen=True, kw_only=True, eq=False)
class GlobalShuffle(Plan):
    """Training batches, each sample anywhere in the epoch.

    One permutation of all samples is cut into global batches of ``world * batch_size``; each rank takes every
    ``world``-th sample of it. So every rank has the same number of full batches, no sample comes twice, and the union
    over the ranks is the same set of global batches. What is left over at the end is dropped for this epoch.

    Attributes:
        count: samples in the data set.
        seed: the data's seed.
    """

    count: int
    seed: int

    @property
    def batches(self) -> int:
        """How many batches every epoch has, the same on every rank."""
        return self.count // (self.batch_size * self.world)

    def of_epoch(self, epoch: int) -> tuple[Numbers, Mask]:
        """Return the sample numbers ``[batches, batch_size]`` of an epoch; all count."""
        order = random_stream(self.seed, "order", epoch).permutation(self.count)
        used = order[: self.batches * self.batch_size * self.world]
        return all_count(used.reshape(self.batches, self.batch_size, self.world)[:, :, self.rank])

    @property
    def order(self) -> Mapping[str, int | str]:
        """What the order follows from, apart from the epoch; the same on every rank."""
        step = self.batch_size * self.world
        return {"samples": self.count, "samples_a_step": step, "seed": self.seed, "shuffle": "global"}


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationOrder(Plan):
    """Evaluation batches of some samples in order, each valid exactly once over all ranks.

    Every rank gets the same number of full batches; what the samples do not fill repeats the last one with a false
    mask.

    Attributes:
        numbers: ``[N]`` the samples, at least one.
    """

    numbers: Numbers

    @property
    def batches(self) -> int:
        """How many batches there are, the same on every rank."""
        return -(-len(self.numbers) // (self.batch_size * self.world))

    def of_epoch(self, epoch: int) -> tuple[Numbers, Mask]:
        """Return the sample numbers ``[batches, batch_size]``, and which of them count."""
        places = np.arange(self.batches * self.batch_size * self.world)
        mine = places.reshape(self.batches, self.batch_size, self.world)[:, :, self.rank]
        return self.numbers[np.minimum(mine, len(self.numbers) - 1)], mine < len(self.numbers)
