"""Callbacks that jobs of the tests run with: what was trained on, where to wait for a signal, where to fail."""

import json
import os
import time
from pathlib import Path

from pytorch_lightning import Callback

from lit_robust.callbacks import SaveOnSignal


class BatchRecorder(Callback):
    """Writes the samples of every training batch, in order, into ``batches-<rank>.jsonl`` of the run's folder."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with (Path(trainer.default_root_dir) / f"batches-{trainer.global_rank}.jsonl").open("a") as file:
            start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            record = {"start": start, "time": time.time(), "step": trainer.global_step, "index": batch.index.tolist()}
            file.write(json.dumps(record) + "\n")


class WaitForSignal(Callback):
    """Holds rank 0 after a step of the job's first start until it has heard a signal, for at most five minutes."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step != self.step or trainer.global_rank or "SLURM_RESTART_COUNT" in os.environ:
            return
        saver = next(callback for callback in trainer.callbacks if isinstance(callback, SaveOnSignal))
        until = time.monotonic() + 300
        while not saver.asked and time.monotonic() < until:
            time.sleep(0.05)


class FailOnRank(Callback):
    """Fails on one rank after a step."""

    def __init__(self, step: int, rank: int) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            raise RuntimeError(f"rank {self.rank} fails on purpose")
