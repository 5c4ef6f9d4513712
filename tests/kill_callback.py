"""A callback that ends its process as a power cut would."""

import os
import shutil
import signal

from pytorch_lightning import Callback


class KillAfter(Callback):
    """Kill this process after a training step, where the environment variable KILL says yes.

    Args:
        step: number of the step, from 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and os.environ.get("KILL") == "yes":
            os.kill(os.getpid(), signal.SIGKILL)


class CopyBefore(Callback):
    """Copies a checkpoint as it is before a batch, as a kill would leave it.

    Args:
        batch: counted from 0 over all epochs.
        file: the checkpoint.
        copy: where to.
    """

    def __init__(self, batch: int, file: str, copy: str) -> None:
        self.batch, self.file, self.copy = batch, file, copy

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch - 1:
            shutil.copy(self.file, self.copy)
