"""Checkpoints that are whole, that lie between two steps, and that a signal leaves behind.

A training that was killed, interrupted or queued again goes on as if nothing had happened.
"""

import logging
import multiprocessing
import os
import shlex
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import torch.distributed
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn

from lit_robust.core.errors import UserError
from lit_robust.core.files import atomic_path
from lit_robust.core.processes import kill
from lit_robust.core.results import FILE_NAME

log = logging.getLogger(__name__)

FILE = Path("checkpoints", "requeue.ckpt")
REQUEUE = 85  # exit code of a saved run: BSD's first free codes end at 78, shells' signals begin at 128
EXIT_CODES = {
    signal.SIGUSR1: REQUEUE,
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 128 + signal.SIGINT,
}
WAIT = b"\nSaving after this batch, and after a validation that is due; Ctrl-C again ends at once.\n"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint next to its place, and moves it there.

    Lightning's own writes it into the folder for temporary files first (fsspec's transaction); where that is another
    disk, as on most clusters, the move is a copy, and a job killed in it has lost its last checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        # Into a file of Python's, whose error names a full disk; torch's own says only that a position is unexpected.
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints so, unless it was given a way of its own, or writes to a URL."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO and "://" not in str(trainer.default_root_dir):
        strategy.checkpoint_io = WholeCheckpoints()


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


def newest_checkpoint(folders: Sequence[Path]) -> Path | None:
    """Return the checkpoint in these folders that was written last; null where there is none."""
    files = [file for folder in folders for file in folder.glob("*.ckpt")]
    return max(files, key=lambda file: file.stat().st_mtime_ns, default=None)


def check_folder(root: Path, folders: Sequence[Path], checkpoint: str | None) -> None:
    """Refuse to train where another run's checkpoints or results lie, which the new ones would not replace.

    Lightning would write ``last-v1.ckpt`` next to the other run's ``last.ckpt``.

    Args:
        root: the run's folder.
        folders: of its checkpoints.
        checkpoint: from which the training goes on; null for a new one.

    Raises:
        UserError: something of another run is there.
    """
    requeued = SLURMEnvironment.detect() and any(root.glob("hpc_ckpt_*"))  # Lightning goes on from it by itself.
    if checkpoint in ("best", "last", "hpc") or (checkpoint is None and requeued):
        return
    if checkpoint is not None and Path(checkpoint).resolve().is_relative_to(root.resolve()):
        return
    newest = newest_checkpoint([root, *folders])
    if newest is None and not (root / FILE_NAME).is_file():
        return
    goes_on = f"go on with that run by --ckpt_path {newest}, or " if newest is not None else ""
    raise UserError(
        f"{root} holds another run's {newest.name if newest else FILE_NAME}: {goes_on}give this one a folder of its "
        "own, by --trainer.default_root_dir."
    )


class SaveOnSignal(Callback):
    """Ends a training on a signal after the batch it is in; what was done is in ``checkpoints/requeue.ckpt``.

    Rank 0 then leaves with exit code 85 after SIGUSR1 ("start me again"), 143 after SIGTERM and 130 after SIGINT
    (Ctrl-C), the others with 0. A training resumed from the file takes the very next batch. Lightning 2.6.6 would save
    from inside SIGUSR1's handler instead, which may interrupt a rank in the middle of an optimiser's step or of a
    collective operation, and would then call the queue by itself, which containers cannot (`signal_connector.py`);
    after SIGTERM it would leave with 0, as a finished training does. What is not training ignores SIGUSR1: it has
    nothing to save.

    All ranks end after the same batch, whenever the signal reaches each of them. A validation is finished first, and an
    epoch's last batch is followed by one more: Lightning would leave out the epoch's validation on resuming there. A
    second Ctrl-C ends at once.

    SLURM sends SIGTERM to the processes of loggers, too. W&B's ends at once, and a training on several ranks that logs
    in that very batch fails unsaved; SIGUSR1 has no such gap.

    Args:
        signals: names of those it takes, of SIGUSR1, SIGTERM and SIGINT. The command line adds this callback for the
            last two where a recipe does not name it, so that Lightning's way of queueing a job again stays.
        command: what was typed, of which the command that goes on is made.
    """

    def __init__(self, signals: Sequence[str] = ("SIGUSR1", "SIGTERM", "SIGINT"), command: str = "") -> None:
        known = {number.name: number for number in EXIT_CODES}
        if unknown := set(signals) - known.keys():
            raise UserError(f"signals names {', '.join(sorted(unknown))}: choose of {', '.join(known)}.")
        self.signals = {known[name] for name in signals}
        self.command = command
        self.asked = 0
        self.leaves_with: int | None = None
        self._agreed = 0
        self._earlier: set[BaseProcess] = set(multiprocessing.active_children())
        self._process = os.getpid()
        self._group: torch.distributed.ProcessGroup | None = None
        self._pending: tuple[torch.Tensor, torch.distributed.Work] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the signals wait until the first batch, but Ctrl-C, which ends at once what has not begun.

        The loader's processes, which start by then, inherit that they never hear them. SLURM signals those too, and
        without them the batch would fail before it is saved. Ctrl-C they ignore by themselves, see `PlannedLoader`.
        """
        write_whole_checkpoints(trainer)
        if stage == "fit":
            self._earlier, self._process = set(multiprocessing.active_children()), os.getpid()
            signal.pthread_sigmask(signal.SIG_BLOCK, self.signals - {signal.SIGINT})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals from Lightning, which at the end gives them back to whom they were before."""
        for number in self.signals:
            signal.signal(number, self._note)
        if trainer.world_size > 1:
            # On the CPU, so that asking never waits for a GPU.
            group = torch.distributed.new_group(backend="gloo")
            self._group = cast(torch.distributed.ProcessGroup, group)  # every rank is in it

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ignore the warning, unless the validation is a training's."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._ignore_warning()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ignore the warning."""
        self._ignore_warning()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ignore the warning."""
        self._ignore_warning()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hear the signals, now that the loader's processes have started; leave, once the last batch is logged."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)
        if self.leaves_with is not None:
            raise SystemExit(self.leaves_with if trainer.is_global_zero else 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after this batch, if a signal has reached any rank, unless gradients or a validation are to come."""
        self._agreed = max(self._agreed, self._asked_of_any_rank())
        if not self._agreed or not is_between_steps(trainer, batch_idx + 1):
            return
        number = signal.Signals(self._agreed)
        if keeps_its_state(pl_module):
            log.warning("%s: leaving after batch %d.", number.name, batch_idx + 1)
        else:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / FILE, weights_only=False)
            log.warning("%s: saved %s after step %d, and leaving.", number.name, FILE, trainer.global_step)
        self.leaves_with = EXIT_CODES[number]

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
        """End the loader's processes, let no signal wait any longer, and note how an interrupted training goes on."""
        self._release(trainer)
        if trainer.state.fn == TrainerFn.FITTING and isinstance(exception, KeyboardInterrupt | SystemExit):
            exception.add_note(self._ending(trainer, pl_module) if trainer.is_global_zero else "")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the loader's processes, and let no signal wait any longer."""
        self._release(trainer)

    def _ignore_warning(self) -> None:
        if signal.SIGUSR1 in self.signals:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # A loader's process, which a terminal's Ctrl-C reaches, too.
        if number == signal.SIGINT:
            if self.asked:
                raise KeyboardInterrupt
            os.write(2, WAIT)  # `print` may be what was interrupted.
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

    def _ending(self, trainer: Trainer, module: LightningModule) -> str:
        """Return the sentence that says what an interrupted training left behind, and how it goes on."""
        if keeps_its_state(module):
            return "interrupted; what was finished is kept, and the same command goes on."
        root = Path(trainer.default_root_dir)
        kept = [saver.dirpath for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        file = newest_checkpoint([(root / FILE).parent, *(Path(folder) for folder in kept if folder)])
        if file is None:
            return "interrupted before the first checkpoint; nothing of the training is kept: start it again."
        holds = "all that was done" if self.leaves_with is not None else "what was done until it was written"
        return f"interrupted; {file} holds {holds}. To go on: {resuming(self.command, file)}"

    def _release(self, trainer: Trainer) -> None:
        """End a training's loader: Python's exit would ask its processes by SIGTERM, which they never hear."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        kill(set(multiprocessing.active_children()) - self._earlier)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)


def keeps_its_state(module: LightningModule) -> bool:
    """Tell whether what a training does is kept without a checkpoint, as a memory's keys are."""
    return bool(getattr(module, "keeps_its_state", False))


def resuming(command: str, checkpoint: Path) -> str:
    """Return the command that goes on from a checkpoint.

    Args:
        command: the one that was interrupted; empty where there was none.
        checkpoint: where it goes on.

    Example:
        >>> resuming("lit-robust fit -c a.yaml --ckpt_path old.ckpt --data.seed 1", Path("new.ckpt"))
        'lit-robust fit -c a.yaml --data.seed 1 --ckpt_path new.ckpt'
    """
    words = shlex.split(command) or ["trainer.fit"]
    places = [place for place, word in enumerate(words) if word == "--ckpt_path"]
    dropped = {place + offset for place in places for offset in (0, 1)}
    kept = [w for place, w in enumerate(words) if place not in dropped and not w.startswith("--ckpt_path=")]
    return shlex.join([*kept, "--ckpt_path", str(checkpoint)])
