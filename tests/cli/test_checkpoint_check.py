"""Checkpoints that cannot be tested: one sentence before anything heavy is done."""

import argparse
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from lit_robust.cli import main
from lit_robust.cli.weights import check_weights
from lit_robust.core.errors import UserError
from lit_robust.modules.base import read_hyperparameters

MODULE = "lit_robust.modules.standard.StandardModule"
MIXUP = "lit_robust.modules.mixing.Mixup"
NETWORK = {"name": "lit_robust/resnet_tiny", "num_classes": 5, "mean": None, "std": None}


def save(file, hyperparameters, **more):
    content = {"state_dict": {"w": torch.ones(4000)}, "pytorch-lightning_version": "2", **more}
    torch.save({**content, "hyper_parameters": hyperparameters}, file)
    return file


def check(command, file, **network):
    init_args = Namespace(network=Namespace(**{**NETWORK, "weights": None, "arguments": None, **network}))
    options = Namespace(
        trainer=Namespace(default_root_dir=str(file.parent)),
        ckpt_path=str(file),
        model=Namespace(class_path=MODULE, init_args=init_args),
    )
    check_weights(command, options)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    file = save(tmp_path / "w.ckpt", {"network": NETWORK})
    assert read_hyperparameters(file) == {"network": NETWORK}
    numbers = file.read_bytes().index(torch.ones(4000).numpy().tobytes())
    with file.open("r+b") as stream:
        stream.seek(numbers + 8000)
        stream.write(bytes(range(64)))
    with pytest.raises(UserError, match=r"w\.ckpt is damaged, .*: copy it again, or take an older checkpoint\.$"):
        read_hyperparameters(file)


def test_an_archive_of_others_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(UserError, match=r"w\.ckpt is not a checkpoint, or not whole"):
        read_hyperparameters(tmp_path / "w.ckpt")


def test_a_checkpoint_may_have_no_hyperparameters(tmp_path):
    """A LightningModule that keeps none writes none; what it is of, its tensors tell where they are loaded."""
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2"}, tmp_path / "w.ckpt")
    assert read_hyperparameters(tmp_path / "w.ckpt") == {}


@pytest.mark.parametrize("kept", [[1], "resnet", None, {"network": "resnet"}, {"network": None}])
def test_hyperparameters_of_another_program(tmp_path, kept):
    with pytest.raises(UserError, match=r"w\.ckpt is of no module of lit_robust") as caught:
        check("test", save(tmp_path / "w.ckpt", kept))
    assert "\n" not in str(caught.value)


def test_python_objects_in_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"w\.ckpt holds Python objects .* give it as --model\.network\.weights\.$"):
        read_hyperparameters(save(tmp_path / "w.ckpt", {}, args=argparse.Namespace(a=1)))


def test_a_hyperparameter_of_another_version(tmp_path):
    kept = {"_class_path": MODULE, "_instantiator": "x", "network": NETWORK, "mixing": None}
    check("test", save(tmp_path / "w.ckpt", kept))
    save(tmp_path / "w.ckpt", {**kept, "surprise": 1})
    with pytest.raises(UserError, match="hyperparameter 'surprise', which the StandardModule of this version"):
        check("test", tmp_path / "w.ckpt")
    save(tmp_path / "w.ckpt", {**kept, "network": {**NETWORK, "depth": 3}})
    with pytest.raises(UserError, match=r"hyperparameter 'network\.depth', which the StandardModule of this version"):
        check("test", tmp_path / "w.ckpt")
    save(tmp_path / "w.ckpt", {**kept, "mixing": {"class_path": MIXUP, "init_args": {"share": 1}}})
    with pytest.raises(UserError, match=r"hyperparameter 'mixing\.share', which the StandardModule of this version"):
        check("test", tmp_path / "w.ckpt")
    # A resumed training keeps the settings it is given.
    check("fit", tmp_path / "w.ckpt")


def test_what_a_checkpoint_names_is_neither_imported_nor_called(tmp_path, monkeypatch):
    (tmp_path / "leaves_a_trace.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    with pytest.raises(UserError, match=r"is of 'leaves_a_trace\.Module', which is not an imported ClassifierModule"):
        check("test", save(tmp_path / "w.ckpt", {"_class_path": "leaves_a_trace.Module", "network": NETWORK}))
    assert not (tmp_path / "trace").exists()
    save(tmp_path / "w.ckpt", {"_class_path": MODULE, "network": {**NETWORK, "name": "os:system"}})
    with pytest.raises(UserError, match="is of another network: its name is os:system"):
        check("test", tmp_path / "w.ckpt")


@pytest.mark.parametrize("arguments", [None, {"width": 3}])
def test_a_callable_is_given_its_arguments_by_the_user_alone(tmp_path, arguments):
    kept = {**NETWORK, "name": "nets:make_net", "arguments": arguments}
    file = save(tmp_path / "w.ckpt", {"_class_path": MODULE, "network": kept})
    check("test", file, name="nets:make_net", arguments=arguments)
    with pytest.raises(
        UserError, match=r"is of nets:make_net with the arguments .*, which is called only where you name"
    ):
        check("test", file, name="nets:make_net", arguments={"width": 4})


OWN = """
from torch import nn

def make_net(num_classes, width):
    layers = nn.Conv2d(3, width, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    return nn.Sequential(*layers)
"""


def test_a_network_of_the_users_own_is_trained_and_tested(toy, tmp_path, monkeypatch, capsys):
    """From a recipe next to its module, and from the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    Path("own_nets.py").write_text(OWN)
    network = {"name": "own_nets:make_net", "num_classes": 8, "arguments": {"width": 3}}
    Path("own.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"network": network}}}))
    recipe = Path(__file__).parents[2] / "configs/toy/standard.yaml"
    words = [
        "-c",
        str(recipe),
        "--data.root",
        str(toy),
        "--trainer.logger",
        "false",
        "--trainer.default_root_dir",
        "run",
    ]
    assert (
        main(["fit", *words, "-c", "own.yaml", "--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1"]) == 0
    )
    (last,) = Path("run").rglob("last.ckpt")
    named = ["--model.network.name", "own_nets:make_net", "--model.network.arguments"]
    assert main(["validate", *words, *named, '{"width": 3}', "--ckpt_path", str(last)]) == 0
    with pytest.warns(UserWarning, match="those weights that own_nets:make_net itself gives it: to test others, give"):
        assert main(["validate", *words, *named, '{"width": 3}']) == 0
    capsys.readouterr()
    assert main(["validate", *words, *named, '{"width": 4}', "--ckpt_path", str(last)]) == 2
    assert "is called only where you name it" in capsys.readouterr().err
