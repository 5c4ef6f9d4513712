"""The base of all evaluations: one measure on one named test set, counted exactly."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_robust.batch import Batch, EvaluationSet
from lit_robust.callbacks.restriction import restricted
from lit_robust.errors import DataError, UserError
from lit_robust.results import Example, Result


class EvaluationCallback(Callback, ABC):
    """Follows one test loader, and gives results when all its samples were seen once.

    A subclass keeps sums in ``update`` and turns them into results in ``compute``. The base hands it only valid
    samples, refuses logits that are not numbers, checks the count, logs, and keeps the results for the results file.

    Args:
        dataset: name of the test loader, such as ``imagenet``.
    """

    # Labels of a set with categories are numbers of categories, not of the network's classes. None takes any set.
    needs_categories: bool | None = False

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.left_out = False
        self.finished = False
        # What it found before an interruption; see Resumption.
        self.stored: tuple[list[Result], list[Example]] | None = None
        self.results: list[Result] = []
        self.examples: list[Example] = []

    @abstractmethod
    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set all sums to zero on the module's device, before the first batch."""

    @abstractmethod
    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch of valid samples.

        Args:
            module: the module under test.
            batch: float images in [0, 1]; possibly empty.
            logits: fp32 ``[B, num_classes]``.
        """

    @abstractmethod
    def compute(self) -> list[Result]:
        """Return the results over all ranks; every rank calls this, and gets the same."""

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Show images and tables to the loggers, and return the examples for the report; every rank calls this."""
        return []

    @property
    def label(self) -> str:
        """What tells this evaluation's results from another's; no two of a run may share it."""
        return f"{type(self).__name__} on {self.dataset}"

    def update_other(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch of valid samples of the second set, where there is one; as `update`."""
        raise NotImplementedError

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the test loaders that it follows: its own, and a second one that the data may lack."""
        return (self.dataset,)

    def result(
        self,
        metric: str,
        value: Tensor | float,
        unit: str,
        protocol: Mapping[str, Any],
        count: int | None = None,
    ) -> Result:
        """Return a result of this test set, its protocol joined with the data's.

        Args:
            metric: name of the measure.
            value: the value.
            unit: ``fraction`` or ``count``; ``theta`` of the one value that is a setting, the best sharpness.
            protocol: plain values that settle how it was measured.
            count: samples it was measured on; null for the whole set.
        """
        counted = self.described.count if count is None else count
        return Result(self.dataset, metric, float(value), unit, counted, {**self.described.protocol, **protocol})

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the loader by its name; an evaluation of a set that the data left out does nothing."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.finished = self.stored is not None
        self.results, self.examples = self.stored or ([], [])
        self.left_out = self.dataset in getattr(data, "missing_sets", {})
        if self.left_out or self.finished:
            return
        sets: Mapping[str, EvaluationSet] = getattr(data, "evaluation_sets", {})
        if self.dataset not in sets:
            names = ", ".join(sets) or "no test set"
            raise UserError(
                f"{type(self).__name__} evaluates {self.dataset!r}, but the data have {names}: "
                "add that data module, or take the callback out."
            )
        others = [c for c in trainer.callbacks if isinstance(c, EvaluationCallback) and c is not self]  # type: ignore[attr-defined]
        if any(other.label == self.label for other in others):
            raise UserError(f"Two callbacks evaluate {self.label}: give one another name, or take it out.")
        self.described = restricted(sets[self.dataset], trainer)
        if self.needs_categories not in (None, bool(self.described.categories)):
            has = "has" if self.described.categories else "has no"
            raise UserError(f"{self.label} cannot be evaluated, as that set {has} categories: choose another dataset.")
        self.loader_number = list(sets).index(self.dataset)
        other = self.sets[1] if len(self.sets) > 1 and self.sets[1] in sets else None
        self.other_described = None if other is None else restricted(sets[other], trainer)
        self.other_number = -1 if other is None else list(sets).index(other)
        self.last_number = max(self.loader_number, self.other_number)
        self.seen = torch.zeros((), dtype=torch.int64, device=pl_module.device)
        self.broken = torch.zeros((), dtype=torch.int64, device=pl_module.device)
        self.prepare(pl_module, self.described)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compute the results when a later set begins: on all ranks at the same batch, as each has as many of a set."""
        if not (self.left_out or self.finished) and dataloader_idx > self.last_number:
            self._finish(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand the valid part of its sets' batches to ``update`` and ``update_other``."""
        if self.left_out or self.finished:
            return
        if dataloader_idx == self.other_number and self.other_described is not None:
            self.update_other(pl_module, *valid_part(batch, outputs, self.other_described.name, trainer))
        if dataloader_idx != self.loader_number:
            return
        if batch.broken is not None:
            self.broken += batch.broken.sum()
        kept, logits = valid_part(batch, outputs, self.dataset, trainer)
        self.seen += len(kept)
        self.update(pl_module, kept, logits)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results, after computing those of the last set."""
        if not (self.left_out or self.finished):
            self._finish(trainer)
        for result in self.results:
            pl_module.log(result.key, result.value, rank_zero_only=False)

    def _asked(self, trainer: Trainer) -> int | None:
        """Return of how many samples there must be answers; None where batches or a restricted set are cut."""
        batches = trainer.limit_test_batches
        # To Lightning 1.0 is everything, 1 is one batch.
        if not (isinstance(batches, float) and batches == 1.0):
            return None
        limit = getattr(trainer.datamodule, "limit", None)  # type: ignore[attr-defined]
        if limit is None:
            return self.described.count
        is_restricted = "samples_sha256" in self.described.protocol
        return None if is_restricted else min(limit, self.described.count)

    def _finish(self, trainer: Trainer) -> None:
        """Check the count over all ranks, then compute, show and keep the results."""
        seen, broken = (int(trainer.strategy.reduce(n.clone(), reduce_op="sum")) for n in (self.seen, self.broken))
        asked = self._asked(trainer)
        if asked is not None and seen + broken != asked:
            raise DataError(
                f"{seen + broken} samples of {self.dataset} were evaluated where {asked} were asked for: no result is "
                "given."
            )
        if broken:
            protocol = {**self.described.protocol, "broken_images": broken}
            self.described = replace(self.described, count=self.described.count - broken, protocol=protocol)
        if seen != self.described.count:
            protocol = {**self.described.protocol, "partial": True, "full_count": self.described.count}
            self.described = replace(self.described, count=seen, protocol=protocol)
        self.results = self.compute()
        self.examples = self.illustrate(trainer)
        self.finished = True


def valid_part(batch: Batch, outputs: Tensor, dataset: str, trainer: Trainer) -> tuple[Batch, Tensor]:
    """Return the valid samples of a batch and their logits.

    Raises:
        DataError: a logit is no finite number.
    """
    kept: Batch = batch.select(batch.valid)
    logits: Tensor = outputs[batch.valid]
    broken = ~logits.isfinite().all(1)
    if broken.any():
        number = int(kept.index[broken][0])
        data = trainer.datamodule  # type: ignore[attr-defined]
        key = data.sample_key(dataset) if hasattr(data, "sample_key") else None
        name = f" ({key(number)})" if key else ""
        raise DataError(
            f"The network gives logits that are not finite for sample {number}{name} of {dataset}: check its weights "
            "and precision."
        )
    return kept, logits


def log_images(trainer: Trainer, key: str, images: Sequence[Any], captions: Sequence[str]) -> None:
    """Show images, if there are any, to every logger that takes them (W&B does; CSV does not)."""
    for logger in trainer.loggers:
        if images and hasattr(logger, "log_image"):
            logger.log_image(key=key, images=list(images), caption=list(captions))


def log_table(trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Show a table to every logger that takes one (W&B does; CSV does not)."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(key=key, columns=list(columns), data=[list(row) for row in rows])
