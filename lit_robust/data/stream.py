"""Splits behind a URL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lit_robust.core.errors import UserError
from lit_robust.data.plan import BlockShuffle, EvaluationStretches, Lanes, Numbers, Plan
from lit_robust.data.source import Source
from lit_robust.data.split import LANES, Reading, Share, Split
from lit_robust.data.stream_source import StreamSource, TrainingStream
from lit_robust.shards.labels import LabelRule
from lit_robust.shards.remote import Remote


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
        plan = BlockShuffle(lengths=self.lengths, block=reading.block, seed=seed, lanes=lanes, **mine)
        return self._source(TrainingStream, plan, lanes), plan

    def evaluation(self, share: Share) -> tuple[Source, Plan]:
        """Return all samples, each valid once over all ranks."""
        mine = {"batch_size": share.batch_size, "rank": share.rank, "world": share.world}
        lanes = Lanes(evaluation_lanes(len(self), share.batch_size * share.world), 1)
        plan = EvaluationStretches(count=len(self), lanes=lanes, **mine)
        return self._source(StreamSource, plan, lanes), plan

    def _source(self, kind: type[StreamSource], plan: Plan, lanes: Lanes) -> StreamSource:
        return kind(self.remote, self.files, self.lengths, plan, lanes, self.num_classes, self.rule, self.on_error)


def workers_for(lanes: int, num_workers: int) -> int:
    """Return how many processes serve the lanes evenly: the largest divisor of ``lanes`` up to ``num_workers``.

    A loader hands batches to its processes in turn; so a lane always comes to the same one.
    """
    return max((count for count in range(1, num_workers + 1) if lanes % count == 0), default=0)


def evaluation_lanes(count: int, samples_a_step: int) -> int:
    """Return the lanes of an evaluation: as many as leave each at least four full batches, so that few are padded."""
    full = count // samples_a_step
    return max((lanes for lanes in range(1, LANES + 1) if LANES % lanes == 0 and full // lanes >= 4), default=1)
