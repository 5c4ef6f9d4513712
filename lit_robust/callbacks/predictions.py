"""Writes a class for every image of a prediction run."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lit_robust.core.errors import DataError
from lit_robust.core.files import atomic_path

COLUMNS = ("index", "label", "prediction", "probability")


class PredictionFile(Callback):
    """Writes ``predictions.csv`` into the run's folder: one line a sample, in the order of the data set."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, float]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run's lines."""
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep each valid sample's most probable class."""
        kept = batch.select(batch.valid)
        broken = ~outputs[batch.valid].isfinite().all(1)
        if broken.any():
            raise DataError(f"The network gives no numbers for sample {int(kept.index[broken][0])}: check its weights.")
        probability, prediction = outputs[batch.valid].max(1)
        columns = (kept.index, kept.label, prediction, probability)
        self._rows += list(zip(*(column.tolist() for column in columns), strict=True))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' lines together and write them, on rank 0."""
        parts: list[Sequence[tuple[int, int, int, float]]] = [self._rows]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self._rows)
        if trainer.is_global_zero:
            rows = sorted(row for part in parts for row in part)
            path = Path(trainer.default_root_dir) / "predictions.csv"
            with atomic_path(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
