"""A callback that ends its process as a power cut would."""

import os
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
