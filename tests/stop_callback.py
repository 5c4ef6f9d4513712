"""A callback for a recipe: ends a test in the middle of a set when the environment says so."""

import os

from pytorch_lightning import Callback


class StopAt(Callback):
    """Ends the test at the second batch of the named set, if ``STOP_AT`` is its name; notes which sets were read."""

    read: list = []  # noqa: RUF012 (shared on purpose: a command makes its own instance)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        name = list(trainer.datamodule.evaluation_sets)[dataloader_idx]
        if name not in self.read:
            self.read.append(name)
        if batch_idx == 1 and name == os.environ.get("STOP_AT"):
            raise InterruptedError(name)
