"""The test sets that an evaluation follows: whether all their samples came, and what its results leave out."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import DataError

# What of a protocol says that samples are missing.
LIMITS = ("restricted", "skipped", "broken_images", "partial", "full_count")


@dataclass
class FollowedSet:
    """One test set on this rank, while its batches come.

    Attributes:
        described: the set, as a restriction leaves it.
        number: of its loader.
        seen: int64, valid samples so far.
        broken: int64, samples so far that could not be read and that the settings allow to skip.
    """

    described: EvaluationSet
    number: int
    seen: Tensor
    broken: Tensor

    @classmethod
    def start(cls, described: EvaluationSet, number: int, device: torch.device) -> "FollowedSet":
        """Return a set of which nothing has come."""
        seen, broken = torch.zeros(2, dtype=torch.int64, device=device)
        return cls(described, number, seen, broken)

    def count(self, batch: Batch, kept: Batch) -> None:
        """Count a batch, of which ``kept`` is the valid part."""
        self.seen = self.seen + len(kept)
        if batch.broken is not None:
            self.broken = self.broken + batch.broken.sum()

    def as_seen(self, trainer: Trainer) -> EvaluationSet:
        """Return the set's description with what came of it, over all ranks; a collective call.

        ``broken_images`` of the protocol says how many could not be read; ``partial`` that only a part was asked for,
        of the ``full_count`` that could be read.

        Raises:
            DataError: not as many samples came as were asked for.
        """
        seen, broken = (int(trainer.strategy.reduce(n.clone(), reduce_op="sum")) for n in (self.seen, self.broken))
        asked = _asked(trainer, self.described)
        if asked is not None and seen + broken != asked:
            raise DataError(
                f"{seen + broken} samples of {self.described.name} were evaluated where {asked} were asked for: no "
                "result is given."
            )
        protocol, count = dict(self.described.protocol), self.described.count
        if broken:
            protocol, count = {**protocol, "broken_images": broken}, count - broken
        if seen != count:
            protocol |= {"partial": True, "full_count": count}
        return replace(self.described, count=seen, protocol=protocol)


def _asked(trainer: Trainer, described: EvaluationSet) -> int | None:
    """Return of how many samples there must be answers; None where batches or a restricted set are cut."""
    batches = trainer.limit_test_batches
    # To Lightning 1.0 is everything, 1 is one batch.
    if not (isinstance(batches, float) and batches == 1.0):
        return None
    limit = getattr(trainer.datamodule, "limit", None)  # type: ignore[attr-defined]
    if limit is None:
        return described.count
    return None if "samples_sha256" in described.protocol else min(limit, described.count)


def left_out(first: EvaluationSet, second: EvaluationSet) -> dict[str, Any]:
    """Return what a result of two sets has to say of the second one's gaps, joined with what the first one's says.

    Args:
        first: the set that the result goes by; what its protocol alone says is not repeated.
        second: the other one; unreadable images of it count whatever their class.

    Example:
        >>> whole, cut = EvaluationSet("a", 9, {"broken_images": 1}), EvaluationSet("b", 9, {"broken_images": 2})
        >>> left_out(whole, cut), left_out(cut, EvaluationSet("c", 9, {}))
        ({'broken_images': 3}, {})
    """
    own, other = first.protocol, second.protocol
    told: dict[str, Any] = {}
    for name in ("restricted", "skipped"):
        if name in other:
            words = [str(own[name])] if name in own else []
            told[name] = "; ".join([*words, f"of {second.name} {other[name]}"])
    if "broken_images" in other:
        told["broken_images"] = own.get("broken_images", 0) + other["broken_images"]
    if other.get("partial"):
        told["partial"] = True
    return told
