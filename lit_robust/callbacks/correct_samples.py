"""Which images a network gets right, as a file that other evaluations can be restricted to."""

import json
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lit_robust.batch import Batch, EvaluationSet
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.restriction import SCHEMA, samples_digest
from lit_robust.errors import UserError
from lit_robust.files import write_text
from lit_robust.metrics.class_choice import among_classes, check_labels
from lit_robust.results import Example, Result


class CorrectSamples(EvaluationCallback):
    """Writes ``correct-<dataset>.json`` into the run's folder: the numbers of the samples that are classified right.

    ``SampleRestriction`` takes such files. The state is 8 bytes for each right answer, on the module's device.

    Args:
        dataset: name of the test loader.
    """

    def __init__(self, dataset: str = "imagenet") -> None:
        super().__init__(dataset)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Forget an earlier run's samples."""
        # A restriction leaves each sample its number among all.
        whole = module.trainer.datamodule.evaluation_sets[self.dataset]  # type: ignore[attr-defined]
        self.digest, self.whole = samples_digest(whole), whole.count
        self.right: list[Tensor] = [torch.zeros(0, dtype=torch.int64, device=module.device)]

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep the numbers of right answers."""
        check_labels(batch.label, logits.shape[1], self.described.classes)
        answers = among_classes(logits, self.described.classes).argmax(1)
        self.right.append(batch.index[answers == batch.label])

    def compute(self) -> list[Result]:
        """Return how many are right; every rank gets all numbers."""
        own = torch.cat(self.right)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        parts = gather_all_tensors(own) if distributed else [own]
        self.numbers: list[int] = torch.cat(parts).sort()[0].tolist()
        protocol = {"decided_among": len(self.described.classes)} if self.described.classes else {}
        return [self.result("correct_samples", len(self.numbers), "count", protocol)]

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Write the file, on rank 0.

        Raises:
            UserError: only a part of the set was evaluated, so that the list would be too short.
        """
        if self.described.protocol.get("partial"):
            raise UserError(
                f"Only {self.described.count} of the {self.whole} samples of {self.dataset} were evaluated, too few "
                "for a list of those that are right: take --limit or limit_test_batches out, or CorrectSamples."
            )
        if trainer.is_global_zero:
            content = {
                "schema": SCHEMA,
                "dataset": self.dataset,
                "samples_sha256": self.digest,
                "count": self.whole,
                "correct": self.numbers,
            }
            file = Path(trainer.default_root_dir) / f"correct-{self.dataset}.json"
            write_text(file, json.dumps(content) + "\n")
        return []
