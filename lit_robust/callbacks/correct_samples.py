"""Which images a network gets right, as a file that other evaluations can be restricted to."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.plain import PlainData, data_of, description
from lit_robust.callbacks.restriction import SCHEMA, SampleRestriction, sample_keys, samples_digest
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.core.results import Example, Result
from lit_robust.metrics.base import among_classes, check_labels

log = logging.getLogger(__name__)


class CorrectSamples(EvaluationCallback):
    """Writes ``correct-<dataset>.json`` into the run's folder: which samples are classified right.

    ``SampleRestriction`` takes such files. Samples are listed by number, and by name and label where the set knows
    names and has each image once, so that the same images are found in other shards. Nothing is written where only a
    part of the set was evaluated. The state is 16 bytes for each right answer, on the module's device.

    An earlier run's file goes when the test begins: it is another network's.

    Args:
        dataset: name of the test loader.
    """

    def __init__(self, dataset: str = "imagenet") -> None:
        super().__init__(dataset)

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where a restriction of this run needs its file, or samples have no numbers."""
        super().check(trainer)
        self.file = Path(trainer.default_root_dir) / f"correct-{self.dataset}.json"
        restrictions = [c for c in trainer.callbacks if isinstance(c, SampleRestriction)]  # type: ignore[attr-defined]
        if self.file.resolve() in {file.resolve() for one in restrictions for file in one.files}:
            raise UserError(
                f"{self.label} would replace {self.file}, which a SampleRestriction of this test takes: set "
                "trainer.default_root_dir to another folder."
            )
        if isinstance(data_of(trainer), PlainData):
            raise UserError(
                f"{self.label} lists samples by their numbers, which a plain loader does not settle: test with a data "
                "module of lit_robust.data."
            )

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Forget an earlier run's samples; rank 0 removes its file."""
        if module.trainer.is_global_zero:
            self.file.unlink(missing_ok=True)
        # A restriction leaves each sample its number among all.
        whole = data_of(module.trainer).evaluation_sets[self.dataset]
        self.digest, self.whole = samples_digest(whole), whole
        self.right: list[Tensor] = [torch.zeros(0, 2, dtype=torch.int64, device=module.device)]

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep the numbers and labels of right answers."""
        check_labels(batch.label, logits.shape[1], self.described.classes)
        answers = among_classes(logits, self.described.classes).argmax(1)
        self.right.append(torch.stack([batch.index, batch.label], 1)[answers == batch.label])

    def compute(self) -> list[Result]:
        """Return how many are right; every rank gets all of them."""
        own = torch.cat(self.right)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        parts = gather_all_tensors(own) if distributed else [own]
        self.found: list[tuple[int, int]] = sorted(map(tuple, torch.cat(parts).tolist()))
        protocol = {"decided_among": len(self.described.classes)} if self.described.classes else {}
        return [self.result("correct_samples", len(self.found), "count", protocol)]

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Write the file, on rank 0; a list of a part of the set would be too short."""
        if not trainer.is_global_zero:
            return []
        if self.described.protocol.get("partial"):
            log.warning(
                "No list of right samples of %s is written, as only %d of %d were evaluated.",
                self.dataset,
                self.described.count,
                self.whole.count,
            )
            return []
        content = {
            "schema": SCHEMA,
            "dataset": self.dataset,
            "samples_sha256": self.digest,
            "weights_sha256": description(trainer.lightning_module).get("weights_sha256"),
            "count": self.whole.count,
            "correct": [number for number, _ in self.found],
            **self._named(trainer),
        }
        write_text(self.file, json.dumps(content) + "\n")
        return []

    def _named(self, trainer: Trainer) -> dict[str, list[Any]]:
        # Under each of many corruptions an image has the same name, which tells no sample from another.
        if "cells" in self.whole.protocol:
            return {}
        try:
            name = sample_keys(data_of(trainer), self.dataset)
        except UserError:  # A stream's samples have no names, and are found by their numbers.
            return {}
        return {"names": [name(number) for number, _ in self.found], "labels": [label for _, label in self.found]}
