"""Keeps what the network says of every sample of a test set, so that measures can be taken again without it."""

from collections.abc import Iterable
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.decisions import sample_keys
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.prediction_parts import (
    ANSWER,
    COLUMNS,
    FOLDER,
    NUMBERS,
    KeptSet,
    Number,
    What,
    remove_kept,
    write_manifest,
    write_part,
)
from lit_robust.callbacks.results_file import description
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Example, Result


class KeepPredictions(EvaluationCallback):
    """Writes each sample's index, label and answer into ``predictions/<dataset>/`` of the run's folder.

    ``lit-robust recompute`` takes the measures that need no network from these files. They are written as the run goes
    on: at most ``samples_a_file`` answers wait on the device of each rank. 50,000 images of 1,000 classes take 200 MB
    as fp32, all of ImageNet-C 15 GB.

    Args:
        dataset: name of the test loader.
        what: ``logits``, which every measure can be taken from, or ``probabilities`` over all classes.
        number: ``fp32``, from which measures come out the same to the last bit, or ``fp16`` at half the size.
        samples_a_file: how many samples a file holds, on each rank.
    """

    needs_categories = None

    def __init__(
        self,
        dataset: str = "imagenet",
        what: What = "logits",
        number: Number = "fp32",
        samples_a_file: int = 8192,
    ) -> None:
        super().__init__(dataset)
        if samples_a_file < 1:
            raise UserError(f"samples_a_file is {samples_a_file}: give 1 or more.")
        self.what: What = what
        self.number: Number = number
        self.samples_a_file = samples_a_file

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Remove an earlier run's files, on rank 0."""
        trainer = module.trainer
        self.folder = Path(trainer.default_root_dir) / FOLDER / self.dataset
        self.rank, self.written, self.num_classes = trainer.global_rank, 0, 0
        self.waiting: list[dict[str, Tensor]] = []
        self.number_waiting = 0
        if trainer.is_global_zero:
            remove_kept(self.folder)
        trainer.strategy.barrier("an earlier run's predictions are gone")

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep a batch; write a file where enough samples wait."""
        self.num_classes = logits.shape[1]
        answer = (logits.softmax(1) if self.what == "probabilities" else logits).to(NUMBERS[self.number])
        columns = {name: getattr(batch, name) for name in COLUMNS if getattr(batch, name) is not None}
        self.waiting.append({**columns, ANSWER: answer})
        self.number_waiting += len(batch)
        if self.number_waiting >= self.samples_a_file:
            self._write()

    def _write(self) -> None:
        columns = {name: torch.cat([part[name] for part in self.waiting]) for name in self.waiting[0]}
        if not columns[ANSWER].isfinite().all():
            raise UserError(
                f"A logit of {self.dataset} is too large for {self.number}, whose largest number is "
                f"{torch.finfo(columns[ANSWER].dtype).max:g}: set number to fp32."
            )
        write_part(self.folder, self.rank, self.written, columns)
        self.written += 1
        self.waiting, self.number_waiting = [], 0

    def compute(self) -> list[Result]:
        """Write what still waits; there is nothing to measure."""
        if self.number_waiting:
            self._write()
        return []

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Say that the set is whole, on rank 0 and after all ranks have written; read it back for its count.

        Raises:
            DataError: the files hold a sample twice, or not at all.
        """
        trainer.strategy.barrier("all predictions are written")
        if trainer.is_global_zero:
            kept = KeptSet(
                self.folder,
                self.described,
                self.what,
                self.number,
                self.num_classes,
                description(trainer.lightning_module),
            )
            kept.check()
            write_manifest(kept, self._names(trainer))
        return []

    def _names(self, trainer: Trainer) -> Iterable[str] | None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        try:
            name = sample_keys(data, self.dataset)
        except UserError:  # A set without names is no mistake here: the samples' numbers tell them apart.
            return None
        # A restriction leaves each sample its number among all.
        return map(name, range(data.evaluation_sets[self.dataset].count))
