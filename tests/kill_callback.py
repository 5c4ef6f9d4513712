"""Callbacks that end a command as a power cut, a terminal or a queue would."""

import multiprocessing
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


class SignalAt(Callback):
    """Sends this process and its loader's a signal at a hook, some times: as a terminal, or a queue, does.

    Args:
        hook: ``sanity``, ``batch``, ``test`` or ``predict``.
        step: the training's step, from 1, where it is a batch.
        name: of the signal.
        times: how often.
    """

    def __init__(self, hook: str, step: int = 0, name: str = "SIGINT", times: int = 1) -> None:
        self.hook, self.step, self.name, self.times = hook, step, name, times

    def _send(self, hook: str) -> None:
        if hook == self.hook:
            for _ in range(self.times):
                for process in multiprocessing.active_children():
                    os.kill(process.pid, signal.Signals[self.name])
                os.kill(os.getpid(), signal.Signals[self.name])

    def on_sanity_check_start(self, trainer, pl_module):
        self._send("sanity")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self._send("batch")

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._send("predict")

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._send("test")
