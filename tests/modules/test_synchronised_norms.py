"""Synchronised batch norms stay what they were, activation and all."""

import pytest
import torch
from torch import nn

from lit_robust.cli import main
from lit_robust.models import Network, build_classifier
from lit_robust.models.auxiliary_norm import add_auxiliary_norms, auxiliary_branch
from lit_robust.modules.base import SynchronisedNorms


@pytest.mark.parametrize("name", ["timm/efficientnet_b0", "timm/regnety_002", "torchvision/resnet18"])
def test_the_answers_stay(name):
    """By torch's own conversion, EfficientNet and RegNet lose their activations."""
    torch.manual_seed(0)
    network = build_classifier(Network(name, num_classes=4)).network.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        add_auxiliary_norms(network)
        converted = SynchronisedNorms().apply(network)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        # On one process a synchronised norm in eval mode is a plain one.
        assert torch.equal(converted(images), before)
        with auxiliary_branch(converted):
            assert torch.equal(converted(images), before)
        assert torch.equal(SynchronisedNorms().revert(converted)(images), before)


def test_the_command_line_uses_them(toy, tmp_path, monkeypatch, capsys):
    made = []

    class Noted(SynchronisedNorms):
        def __init__(self):
            made.append(self)

    monkeypatch.setattr("lit_robust.cli.trainer.SynchronisedNorms", Noted)
    words = ["fit", "-c", "configs/toy/standard.yaml", "--data.root", str(toy), "--trainer.sync_batchnorm", "true"]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.fast_dev_run", "1"]
    assert main(words) == 0
    assert len(made) == 1
    assert not list(tmp_path.rglob("*.ckpt")), "a run to see whether all works leaves no checkpoint"
    monkeypatch.setenv("MASTER_PORT", "0")  # Lightning's port of these ranks goes with the test.
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"]
    assert main([*words, *ranks]) == 2
    assert "between GPUs alone: set it to false on CPUs" in capsys.readouterr().err
