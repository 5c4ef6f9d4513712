"""Checkpoints that are whole or not there; signals at chosen batches: where a training ends, and what it leaves.

That it goes on at the next batch, on several ranks, is shown by jobs of a real queue in ``tests/slurm``.
"""

import multiprocessing
import os
import signal

import pytest
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_robust.callbacks.checkpoints import FILE, SaveOnSignal, WholeCheckpoints, write_whole_checkpoints
from lit_robust.core.errors import UserError

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
BATCHES = 4  # an epoch


class Line(LightningModule):
    """A line through points."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.validated = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.trainer.global_step)

    def test_step(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGUSR1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Send(Callback):
    """Sends a signal to this process, and to the loader's, before a batch ends, as SLURM does."""

    def __init__(self, number, batch):
        self.number = number
        self.batch = batch
        self.done = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.done += 1
        if self.done == self.batch:
            for process in multiprocessing.active_children():
                os.kill(process.pid, self.number)
            os.kill(os.getpid(), self.number)


def loader(workers=0):
    return DataLoader(TensorDataset(torch.ones(BATCHES, 1)), num_workers=workers)


def trainer(folder, *callbacks, **options):
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | options))


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        (signal.SIGUSR1, 85, 0),
        (signal.SIGUSR1, 85, 1),
        (signal.SIGTERM, 143, 0),
        (signal.SIGTERM, 143, 1),
        (signal.SIGINT, 130, 0),  # Our own loader's processes ignore Ctrl-C, torch's die of it.
    ],
)
def test_a_signal_ends_the_training_after_its_batch(tmp_path, number, code, workers):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    others = set(multiprocessing.active_children())
    with pytest.raises(SystemExit) as ended:
        trainer(tmp_path, Send(number, 2), SaveOnSignal()).fit(Line(), loader(workers))
    assert ended.value.code == code
    assert torch.load(tmp_path / FILE, weights_only=True)["global_step"] == 2
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["requeue.ckpt"]
    # Everything is as it was: other commands may follow in this process.
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)
    assert set(multiprocessing.active_children()) <= others


def test_the_last_batch_of_an_epoch_is_followed_by_its_validation_and_one_more(tmp_path):
    module = Line()
    with pytest.raises(SystemExit):
        trainer(tmp_path, Send(signal.SIGUSR1, BATCHES), SaveOnSignal()).fit(module, loader(), loader())
    assert set(module.validated) == {BATCHES}
    assert torch.load(tmp_path / FILE, weights_only=True)["global_step"] == BATCHES + 1


def test_a_validation_within_the_epoch_is_not_lost_either(tmp_path):
    module = Line()
    often = trainer(tmp_path, Send(signal.SIGUSR1, 2), SaveOnSignal(), val_check_interval=2)
    with pytest.raises(SystemExit):
        often.fit(module, loader(), loader())
    assert set(module.validated) == {2}
    assert torch.load(tmp_path / FILE, weights_only=True)["global_step"] == 3


def test_gathered_gradients_are_used_first(tmp_path):
    with pytest.raises(SystemExit):
        trainer(tmp_path, Send(signal.SIGUSR1, 1), SaveOnSignal(), accumulate_grad_batches=2).fit(Line(), loader())
    saved = torch.load(tmp_path / FILE, weights_only=True)
    assert (saved["global_step"], saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]) == (1, 2)


def test_a_finished_training_leaves_no_checkpoint_to_go_on_from(tmp_path):
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text("of an earlier start")
    trainer(tmp_path, SaveOnSignal(), max_epochs=1).fit(Line(), loader())
    assert not (tmp_path / FILE).exists()


def test_only_the_named_signals_are_taken(tmp_path):
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        trainer(tmp_path, Send(signal.SIGUSR1, 1), SaveOnSignal(("SIGINT",)), max_epochs=1).fit(Line(), loader())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(UserError, match="signals names SIGKILL: choose of SIGUSR1, SIGTERM, SIGINT"):
        SaveOnSignal(("SIGKILL",))


def test_other_processes_of_the_program_live_on(tmp_path):
    """Only the loader's are ended with a training."""
    other = multiprocessing.get_context("fork").Process(target=signal.pause)
    other.start()
    trainer(tmp_path, SaveOnSignal(), max_epochs=1).fit(Line(), loader(workers=1))
    assert multiprocessing.active_children() == [other]
    other.kill()
    other.join()


def test_what_is_no_training_ignores_the_warning(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    trainer(tmp_path, SaveOnSignal()).test(Line(), loader(), verbose=False)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGUSR1) == before


class Unfinished:
    """A value that fails while it is written, when part of the file is there."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_what_is_written_is_what_was_given(tmp_path):
    WholeCheckpoints().save_checkpoint({"weights": torch.arange(5)}, tmp_path / "folder" / "last.ckpt")
    found = torch.load(tmp_path / "folder" / "last.ckpt", weights_only=True)
    assert torch.equal(found["weights"], torch.arange(5))


def test_an_error_in_the_middle_leaves_the_older_checkpoint(tmp_path):
    writer = WholeCheckpoints()
    writer.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="No space left"):
        writer.save_checkpoint({"weights": torch.zeros(1000), "rest": Unfinished()}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


class Own(TorchCheckpointIO):
    """A user's own way."""


@pytest.mark.parametrize(
    ("root", "plugins", "kind"),
    [("runs", None, WholeCheckpoints), ("s3://runs", None, TorchCheckpointIO), ("runs", Own(), Own)],
)
def test_a_users_own_way_and_urls_stay(root, plugins, kind):
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=root, plugins=plugins)
    write_whole_checkpoints(trainer)
    assert type(trainer.strategy.checkpoint_io) is kind
