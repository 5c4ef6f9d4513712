"""How fast a training is, without waiting for the device at every batch."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lit_robust.core.batch import Batch


class Throughput(Callback):
    """Logs ``train/images_per_second``: images of all ranks a second, since the last logged step.

    Validation does not count. The clock is the host's; where values are logged, they are waited for, and so is the
    device, so that a rate between two logged steps is the device's, too.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; a training that is resumed in mid-epoch starts no epoch."""
        self.images, self.since = 0, time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self.images, self.since = 0, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew after a validation in mid-epoch."""
        self.images, self.since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the rate, and at every logged step begin anew."""
        self.images += len(batch) * trainer.world_size
        pl_module.log("train/images_per_second", self.images / (time.monotonic() - self.since), batch_size=len(batch))
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.images, self.since = 0, time.monotonic()
