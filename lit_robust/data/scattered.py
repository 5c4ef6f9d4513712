"""Plans of batches whose samples may lie anywhere: for sets that are read by place, in any order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lit_robust.data.plan import Mask, Numbers, Plan, all_count, random_stream


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
        """What the order follows from, beside the epoch; the same on every rank."""
        step = self.batch_size * self.world
        return {"samples": self.count, "samples_a_step": step, "seed": self.seed, "shuffle": "global"}


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationOrder(Plan):
    """Evaluation batches in order, each sample valid exactly once over all ranks.

    Every rank gets the same number of full batches; what the data do not fill repeats the last sample with a false
    mask.

    Attributes:
        count: samples in the data set.
    """

    count: int

    @property
    def batches(self) -> int:
        """How many batches there are, the same on every rank."""
        return -(-self.count // (self.batch_size * self.world))

    def of_epoch(self, epoch: int) -> tuple[Numbers, Mask]:
        """Return the sample numbers ``[batches, batch_size]``, and which of them count."""
        places = np.arange(self.batches * self.batch_size * self.world)
        mine = places.reshape(self.batches, self.batch_size, self.world)[:, :, self.rank]
        return np.minimum(mine, self.count - 1), mine < self.count


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenOrder(Plan):
    """Some samples in order, each valid exactly once over all ranks, as `EvaluationOrder` does with all.

    Attributes:
        numbers: ``[N]`` the samples, at least one.
    """

    numbers: Numbers

    @property
    def batches(self) -> int:
        """How many batches there are, the same on every rank."""
        return self._places.batches

    def of_epoch(self, epoch: int) -> tuple[Numbers, Mask]:
        """Return the sample numbers ``[batches, batch_size]``, and which of them count."""
        places, valid = self._places.of_epoch(epoch)
        return self.numbers[places], valid

    @property
    def _places(self) -> EvaluationOrder:
        return EvaluationOrder(count=len(self.numbers), batch_size=self.batch_size, rank=self.rank, world=self.world)
