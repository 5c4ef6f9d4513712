"""Checkpoints that a killed training can go on from as if nothing had happened."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint


class CheckpointBetweenSteps(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which waits until nothing is pending; all its settings are that one's.

    Lightning 2.6.6 saves by time, or by steps, after any batch. Gradients that ``accumulate_grad_batches`` has gathered
    by then, and the validation that is due after a batch, are in no checkpoint, and a resumed training lacks them.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save what is due, unless something is pending; then it is due after the next batch, too."""
        if is_between_steps(trainer, batch_idx + 1):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def is_between_steps(trainer: Trainer, batches: int) -> bool:
    """Tell whether nothing is pending after so many batches of an epoch: no gradients, no validation."""
    interval = trainer.val_check_batch
    validates = isinstance(interval, int) and batches % interval == 0
    return batches % trainer.accumulate_grad_batches == 0 and not validates and not trainer.is_last_batch
