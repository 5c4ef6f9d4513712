"""Kept predictions in place of a network and of images: what an evaluation takes its measures from a second time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor

from lit_robust.callbacks.prediction_parts import ANSWER, KeptSet
from lit_robust.core.batch import Batch, EvaluationSet

ROWS = 4096  # Samples a batch; no measure depends on it.


@dataclass(kw_only=True)
class AnsweredBatch(Batch):
    """A batch of kept answers; its images are not there, ``[B, 3, 0, 0]``.

    Attributes:
        answer: ``[B, num_classes]`` fp32 logits.
    """

    answer: Tensor


class Answers(LightningModule):
    """Stands for the network: hands on the answers that a replayed batch holds.

    Args:
        model: what the module that gave them said of itself.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        self._model = dict(model)

    def describe(self) -> dict[str, Any]:
        """Return what the network's module said of itself."""
        return self._model

    def test_step(self, batch: AnsweredBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the stored answers, fp32 ``[B, num_classes]``."""
        return batch.answer


class KeptData(LightningDataModule):
    """Gives kept predictions as test sets, in batches that have answers in place of images.

    Samples are numbered anew, so that those of a restricted set have no gaps.

    Args:
        sets: what was kept.
        origin: name of the run it is from.
    """

    def __init__(self, sets: Sequence[KeptSet], origin: str) -> None:
        super().__init__()
        self.sets = sets
        self.origin = origin

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each sample of a set by its new number; None where the set knew none."""
        kept = next(kept for kept in self.sets if kept.described.name == name)
        names = kept.names
        return None if names is None else lambda number: names[int(kept.index[number])]

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """Name to description of every set, which says where its answers are from."""
        return {kept.described.name: self._described(kept) for kept in self.sets}

    def _described(self, kept: KeptSet) -> EvaluationSet:
        origin = {"run": self.origin, "from": kept.what, "number": kept.number}
        return replace(kept.described, protocol={**kept.described.protocol, "recomputed": origin})

    def test_dataloader(self) -> dict[str, "Replay"]:
        """Return what replays each set, by name."""
        return {kept.described.name: Replay(kept) for kept in self.sets}


class Replay:
    """Iterates over the kept samples of a set, in batches of at most ``ROWS``."""

    def __init__(self, kept: KeptSet) -> None:
        self.kept = kept

    def __iter__(self) -> Iterator[AnsweredBatch]:
        for part in self.kept.parts():
            for begin in range(0, len(part["index"]), ROWS):
                yield self._batch({name: column[begin : begin + ROWS] for name, column in part.items()})

    def _batch(self, columns: Mapping[str, Tensor]) -> AnsweredBatch:
        answer = columns[ANSWER].float()
        if self.kept.what == "probabilities":
            # A logarithm is a logit up to a constant; a probability of 0 becomes the least that is a finite number.
            answer = answer.clamp_min(torch.finfo(torch.float32).tiny).log()
        return AnsweredBatch(
            image=torch.empty(len(answer), 3, 0, 0),
            answer=answer,
            label=columns["label"],
            index=torch.searchsorted(self.kept.index, columns["index"]),
            valid=torch.ones_like(columns["label"], dtype=torch.bool),
            group=columns.get("group"),
            texture=columns.get("texture"),
        )
