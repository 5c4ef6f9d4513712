"""What is watched while a network trains: a collapse under attack, and images a second."""

import time

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger
from test_modules import NETWORK, SETTINGS, fit

from lit_robust.attacks import PGD, AttackResult
from lit_robust.bench.measuring import Repeatable
from lit_robust.callbacks import Announcement, OverfittingMonitor, Throughput
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule

ATTACK = PGD(norm="l2", eps=0.5, step_size=0.1, steps=10)


def planned(monkeypatch, broken):
    """Let the attack break these many of four images, look by look."""
    looks = iter(broken)

    def attack(self, model, images, labels, *, generator=None):
        success = torch.arange(len(images)) < next(looks)
        zero = torch.zeros_like(labels)
        return AttackResult(images, success, zero.float(), zero, zero, zero > 0)

    monkeypatch.setattr(PGD, "__call__", attack)


class Steps(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, batch_idx))


def test_a_collapse_stops_training_and_says_so(tmp_path, monkeypatch):
    planned(monkeypatch, [2, 1, 2, 4])
    steps, monitor = Steps(), OverfittingMonitor(ATTACK, every=1, drop=0.3)
    with pytest.warns(UserWarning, match=r"10-step PGD fell from 0\.750 to 0\.000 by batch 4; training stops"):
        trainer = fit(StandardModule(NETWORK, SETTINGS), tmp_path, max_epochs=3, callbacks=[monitor, steps])
    # Three batches an epoch, and 3 of 4 images standing at best: only the fourth look falls by more than 0.3.
    assert steps.seen == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert float(trainer.callback_metrics["train/monitored_adversarial_accuracy"]) == 0
    again = OverfittingMonitor(ATTACK)
    again.load_state_dict(monitor.state_dict())
    assert (again.best, again.collapsed) == (0.75, False)


def test_it_may_warn_only_and_looks_at_every_so_many_batches(tmp_path, monkeypatch):
    planned(monkeypatch, [0, 4, 4])
    steps = Steps()
    with pytest.warns(UserWarning, match="by batch 4. Train with more steps") as warned:
        fit(
            StandardModule(NETWORK, SETTINGS),
            tmp_path,
            max_epochs=2,
            callbacks=[OverfittingMonitor(ATTACK, every=2, stop=False), steps],
        )
    assert len(steps.seen) == 6
    assert sum("Catastrophic" in str(warning.message) for warning in warned) == 1


def test_a_look_is_the_accuracy_under_the_attack(tmp_path):
    module = StandardModule(NETWORK, SETTINGS)
    seen = []

    class Check(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            success = ATTACK(pl_module.model, batch.image[:3], batch.label[:3]).success
            seen.append(1 - float(success.float().mean()))

    trainer = fit(module, tmp_path, callbacks=[OverfittingMonitor(ATTACK, every=3, images=3), Check()])
    assert float(trainer.callback_metrics["train/monitored_adversarial_accuracy"]) == pytest.approx(seen[2])
    assert module.model.training


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="every is 0"):
        OverfittingMonitor(ATTACK, every=0)
    with pytest.raises(UserError, match="drop 1.5"):
        OverfittingMonitor(ATTACK, drop=1.5)


def test_images_of_a_step_over_its_seconds(tmp_path, monkeypatch):
    """Batches of 3 images, each of which takes 0.5 s: 6 a second, whatever came before a logged step."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(StandardModule):
        def training_step(self, batch, batch_idx):
            now[0] += 0.5 if self.global_step > 2 else 3.0
            return super().training_step(batch, batch_idx)

    logger, seen = CSVLogger(tmp_path), {}
    monkeypatch.setattr(logger, "log_metrics", lambda metrics, step=None: seen.update({step: dict(metrics)}))
    index = torch.arange(3)
    batch = Batch(torch.rand(3, 3, 16, 16), index, index, torch.ones(3, dtype=torch.bool))
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=3, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[Throughput()], default_root_dir=tmp_path,
    )  # fmt: skip
    module = Slow(Network("lit_robust/resnet_tiny", 8), Optimisation(learning_rate=0.01))
    trainer.fit(module, Repeatable([batch] * 6))
    rates = {
        step: found["train/images_per_second"] for step, found in seen.items() if "train/images_per_second" in found
    }
    # The first three steps took 3 s each.
    assert rates == {2: pytest.approx(1.0), 5: pytest.approx(6.0)}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        # Three steps are the warm-up. Two more measure 61 s where a step takes 60.
        (6.0, []),
        (
            60.0,
            ["9 more steps, without validation: about 9.0 minutes.", "2 more batches of this set: about 2.0 minutes."],
        ),
        (
            7200.0,
            ["10 more steps, without validation: about 20.0 hours.", "3 more batches of this set: about 6.0 hours."],
        ),
    ],
)
def test_what_takes_longer_than_a_minute_is_announced_once(tmp_path, monkeypatch, capsys, seconds, words):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(StandardModule):
        def training_step(self, batch, batch_idx):
            now[0] += seconds if self.global_step > 2 else 1000.0  # The first steps compile.
            return super().training_step(batch, batch_idx)

        def test_step(self, batch, batch_idx):
            now[0] += seconds if batch_idx > 2 else 1000.0
            return super().test_step(batch, batch_idx)

    index = torch.arange(3)
    batch = Batch(torch.rand(3, 3, 16, 16), index, index, torch.ones(3, dtype=torch.bool))
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
        callbacks=[Announcement(seconds=61.0 if seconds == 60 else 10.0)],
    )  # fmt: skip
    module = Slow(Network("lit_robust/resnet_tiny", 8), Optimisation(learning_rate=0.01))
    trainer.fit(module, Repeatable([batch] * 7))
    trainer.test(module, Repeatable([batch] * 7), verbose=False)
    printed = [line for line in capsys.readouterr().out.splitlines() if " more " in line]
    assert printed == words
