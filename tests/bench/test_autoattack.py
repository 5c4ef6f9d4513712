"""AutoAttack's benchmark: who is asked for what, and the table's counts. No time is asserted."""

import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lit_robust.attacks import APGD, AutoAttack
from lit_robust.cli import main

NETWORK = "{name: lit_robust/resnet_tiny, num_classes: 8}"


@pytest.fixture
def peer(monkeypatch):
    """In place of the authors' code, which no registry has: an attack that turns the first half of a batch to noise."""
    asked = []

    class Peer:
        def __init__(self, model, **settings):
            self.apgd_targeted, self.fab = SimpleNamespace(), SimpleNamespace()
            asked.append(settings | {"parts": (self.apgd_targeted, self.fab)})

        def run_standard_evaluation(self, images, labels, bs):
            half = bs // 2
            noise = torch.rand(half, *images.shape[1:], generator=torch.Generator().manual_seed(0))
            return torch.cat([noise, images[half:]])

    module = ModuleType("autoattack")
    module.AutoAttack = Peer
    module.__spec__ = importlib.util.spec_from_loader("autoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", module)
    return asked


def test_the_table_counts_accuracies_and_unlike_verdicts(toy, peer, monkeypatch, capsys):
    monkeypatch.setattr(AutoAttack, "attacks", lambda self: {"apgd-ce": APGD(norm=self.norm, eps=self.eps, steps=5)})
    folder = str(toy / "imagenet")
    settings = ["--resize", "null", "--crop", "null", "--norm", "l2", "--eps", "2", "--images", "40", "--batch", "16"]
    torch.manual_seed(0)
    assert main(["bench", "autoattack", folder, "--network", NETWORK, *settings]) == 0
    said = capsys.readouterr().out
    assert [(each["norm"], each["eps"], each["version"], each["seed"]) for each in peer] == [
        ("L2", 2.0, "standard", first) for first in (0, 16, 32)
    ]
    assert all(part.n_target_classes == 7 for each in peer for part in each["parts"])
    rows = re.findall(r"\| ([^|]+) \| [\d.]+ \| ([\d.]+) % \| (\d+) of 40 \|", said)
    assert [name for name, *_ in rows] == ["lit_robust, fp32", "lit_robust, bf16", "its authors' code, fp32"]
    stood = [round(40 * float(share) / 100) for _, share, _ in rows]
    unlike = [int(count) for *_, count in rows]
    assert unlike[2] == 0
    # Whoever stands for one and not for the other is unlike.
    assert unlike[0] >= stood[2] - stood[0]
    broken = dict(re.findall(r"(clean|apgd-ce) (\d+)", said))
    assert int(broken["clean"]) + int(broken["apgd-ce"]) == 40 - stood[0]
    assert int(broken["apgd-ce"]) > 0


def test_without_the_authors_code_it_says_how_to_get_it(toy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "autoattack", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "autoattack", str(toy / "imagenet")]) == 2
    assert "The peer is missing: run `pip install git+https://github.com/fra31/auto-attack`." in capsys.readouterr().err
