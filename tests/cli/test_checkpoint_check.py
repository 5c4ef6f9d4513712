"""Checkpoints that cannot be tested: one sentence before anything heavy is done."""

import argparse
import zipfile

import pytest
import torch
from jsonargparse import Namespace

from lit_robust.cli.trainer import check_weights, read_hyperparameters
from lit_robust.core.errors import UserError

MODULE = "lit_robust.modules.standard.StandardModule"
NETWORK = {"name": "lit_robust/resnet_tiny", "num_classes": 5, "mean": None, "std": None}


def save(file, hyperparameters, **more):
    content = {"state_dict": {"w": torch.ones(4000)}, "pytorch-lightning_version": "2", **more}
    torch.save({**content, "hyper_parameters": hyperparameters}, file)
    return file


def check(command, file):
    init_args = Namespace(network=Namespace(**NETWORK, weights=None))
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
    with pytest.raises(UserError, match=r"w\.ckpt is no checkpoint, or not whole"):
        read_hyperparameters(tmp_path / "w.ckpt")


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
    # A resumed training keeps the settings it is given.
    check("fit", tmp_path / "w.ckpt")
