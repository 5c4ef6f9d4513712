"""Signals at chosen batches of a small training: where it ends, with what code, and what it leaves behind.

That it goes on at the next batch, on several ranks, is shown by jobs of a real queue in ``tests/slurm``.
"""

import multiprocessing
import os
import signal

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_robust.callbacks.requeue import FILE, SaveOnSignal

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD)
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 85), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_the_training_after_its_batch(tmp_path, number, code, workers):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(SystemExit) as ended:
        trainer(tmp_path, Send(number, 2), SaveOnSignal()).fit(Line(), loader(workers))
    assert ended.value.code == code
    assert torch.load(tmp_path / FILE, weights_only=True)["global_step"] == 2
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["requeue.ckpt"]
    # Everything is as it was: other commands may follow in this process.
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)
    assert not multiprocessing.active_children()


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


def test_what_is_no_training_ignores_the_warning(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    trainer(tmp_path, SaveOnSignal()).test(Line(), loader(), verbose=False)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGUSR1) == before
