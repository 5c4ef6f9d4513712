"""Saving on a signal: a job that is about to lose its machine ends between two batches, and says it can go on."""

import logging
import multiprocessing
import signal
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from lit_robust.callbacks.checkpoint import is_between_steps
from lit_robust.callbacks.whole_checkpoints import write_whole_checkpoints

log = logging.getLogger(__name__)

FILE = Path("checkpoints", "requeue.ckpt")
REQUEUE = 85  # exit code of a saved run: BSD's first free codes end at 78, shells' signals begin at 128
ENDED = 128 + signal.SIGTERM
EXIT_CODES = {signal.SIGUSR1: REQUEUE, signal.SIGTERM: ENDED}


class SaveOnSignal(Callback):
    """Ends a training on SIGUSR1 or SIGTERM after the batch it is in; what was done is in ``checkpoints/requeue.ckpt``.

    Rank 0 then leaves with exit code 85 after SIGUSR1 ("start me again") and 143 after SIGTERM, the others with 0. A
    training resumed from the file takes the very next batch. Lightning 2.6.6 would save from inside the signal's
    handler instead, which may interrupt a rank in the middle of an optimiser's step or of a collective operation, and
    would then call the queue by itself, which containers cannot (`signal_connector.py`). What is not training ignores
    SIGUSR1: it has nothing to save.

    All ranks end after the same batch, whenever the signal reaches each of them. A validation is finished first, and an
    epoch's last batch is followed by one more: Lightning would leave out the epoch's validation on resuming there.

    SLURM sends SIGTERM to the processes of loggers, too. W&B's ends at once, and a training on several ranks that logs
    in that very batch fails unsaved; SIGUSR1 has no such gap.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.leaves_with: int | None = None
        self._agreed = 0
        self._group: torch.distributed.ProcessGroup | None = None
        self._pending: tuple[torch.Tensor, torch.distributed.Work] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the signals wait until the first batch.

        The loader's processes, which start by then, inherit that they never hear them. SLURM signals those too, and
        without them the batch would fail before it is saved.
        """
        write_whole_checkpoints(trainer)
        if stage == "fit":
            signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals from Lightning, which at the end gives them back to whom they were before."""
        for number in EXIT_CODES:
            signal.signal(number, self._note)
        if trainer.world_size > 1:
            # On the CPU, so that asking never waits for a GPU.
            group = torch.distributed.new_group(backend="gloo")
            self._group = cast(torch.distributed.ProcessGroup, group)  # every rank is in it

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ignore the warning, unless the validation is a training's."""
        if trainer.state.fn != TrainerFn.FITTING:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ignore the warning."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ignore the warning."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hear the signals, now that the loader's processes have started; leave, once the last batch is logged."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODES)
        if self.leaves_with is not None:
            raise SystemExit(self.leaves_with if trainer.is_global_zero else 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after this batch, if a signal has reached any rank, unless gradients or a validation are to come."""
        self._agreed = max(self._agreed, self._asked_of_any_rank())
        if not self._agreed or not is_between_steps(trainer, batch_idx + 1):
            return
        name = signal.Signals(self._agreed).name
        trainer.save_checkpoint(Path(trainer.default_root_dir) / FILE)
        self.leaves_with = EXIT_CODES[signal.Signals(self._agreed)]
        log.warning("%s: saved %s after step %d, and leaving.", name, FILE, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hear the last answer, for no rank may leave while another still asks."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the checkpoint, which a finished training has outlived."""
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / FILE).unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the loader's processes, and let no signal wait any longer."""
        _release(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the loader's processes, and let no signal wait any longer."""
        _release(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = max(self.asked, number)

    def _asked_of_any_rank(self) -> int:
        """Return the signal that any rank had heard by its batch before this one, the same on every rank; 0 for none.

        The answer is taken one batch late, when all have long sent theirs, so that nobody waits for it.
        """
        if self._group is None:
            return self.asked
        answer = 0
        if self._pending is not None:
            heard, work = self._pending
            work.wait()
            answer = int(heard)
        heard = torch.tensor(self.asked)
        work = torch.distributed.all_reduce(heard, torch.distributed.ReduceOp.MAX, self._group, async_op=True)
        self._pending = (heard, work)
        return answer


def _release(trainer: Trainer) -> None:
    """End a training's loader: Python's exit would ask its processes by SIGTERM, which they never hear, and wait."""
    if trainer.state.fn != TrainerFn.FITTING:
        return
    # torch takes the end of such a process for an accident, and raises an error wherever the program is.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    signal.signal(signal.SIGCHLD, before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODES)
