"""The cluster benchmark: ranks train, hooks are timed, and the command says what they cost. No time is asserted."""

import re
import time

import pytest
from pytorch_lightning import Callback

from lit_robust.bench import cluster
from lit_robust.bench.cluster import WARM_UP, HookClock, Subject, _train
from lit_robust.cli import main

SUBJECT = Subject("lit_robust/resnet_tiny", 16, 2, 3)


class Slow(Callback):
    """Takes at least 20 ms a step."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1
        time.sleep(0.02)


def test_hooks_are_timed_as_part_of_the_step(tmp_path):
    slow = Slow()
    clock = HookClock([slow])
    trainer = _train(SUBJECT, tmp_path, [slow, clock])
    assert slow.steps == trainer.global_step == SUBJECT.steps + WARM_UP
    # What sleeps cannot be faster than its sleep, and is a part of the step.
    assert 0.02 <= clock.hook_seconds < clock.step_seconds


def test_two_ranks_train():
    """Three processes start: the slowest test here, of all that the figure of two ranks depends on."""
    assert cluster._ranks(SUBJECT, 2) > 0


def test_the_command_says_what_restarts_and_ranks_cost(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "_ranks", lambda subject, ranks: {1: 4.0, 2: 6.0}[ranks])
    words = ["--network", "lit_robust/resnet_tiny", "--size", "16", "--batch", "2", "--steps", "2", "--rounds", "1"]
    assert main(["bench", "cluster", *words]) == 0
    said = capsys.readouterr().out
    assert "| one rank | " in said
    assert "| two ranks | " in said
    assert "Scaling efficiency, two ranks' rate of twice one's: 75 %" in said
    assert re.search(r"\d+ microseconds: [\d.]+ %\. A checkpoint of \d+ MB is written in [\d.]+ s", said)
    with pytest.raises(SystemExit):
        main(["bench", "cluster", "--help"])
