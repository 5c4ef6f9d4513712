"""The converter: what it writes is loaded without further settings, and its record is true."""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lit_robust
from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier, weights_digest
from lit_robust.models.foreign.checkpoint import open_checkpoint
from lit_robust.models.foreign.convert import convert

NAME = "lit_robust/resnet_tiny"
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
CIFAR_MEAN, CIFAR_STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]


@pytest.fixture(scope="module")
def source():
    model = build_classifier(Network(NAME, 5))
    model(torch.rand(4, 3, 32, 32))
    return model.eval()


@pytest.fixture
def madry(tmp_path, source):
    """A checkpoint as MadryLab's library writes it, with CIFAR's normalisation and a Namespace next to it."""
    state = source.network.state_dict()
    parts = {
        "module.normalizer.new_mean": torch.tensor(CIFAR_MEAN).view(3, 1, 1),
        "module.normalizer.new_std": torch.tensor(CIFAR_STD).view(3, 1, 1),
        **{f"module.model.{name}": tensor for name, tensor in state.items()},
        **{f"module.attacker.model.{name}": tensor for name, tensor in state.items()},
    }
    file = tmp_path / "cifar_linf_8.pt"
    torch.save({"model": parts, "epoch": 3, "schedule": argparse.Namespace(lr=0.1)}, file)
    return file


def logits_of(file):
    return build_classifier(Network(NAME, 5, weights=str(file))).eval()(IMAGES)


@pytest.mark.parametrize("network", [NAME, None])
def test_convert_and_load(tmp_path, source, madry, network):
    told = convert(madry, tmp_path / "new" / "w.safetensors", network=network, num_classes=5)
    loaded = build_classifier(Network(NAME, 5, weights=str(tmp_path / "new/w.safetensors"))).eval()
    mean, std = torch.tensor(CIFAR_MEAN).view(3, 1, 1), torch.tensor(CIFAR_STD).view(3, 1, 1)
    assert torch.equal(loaded(IMAGES), source.network((IMAGES - mean) / std))
    record = json.loads((tmp_path / "new/w.provenance.json").read_text())
    data = madry.read_bytes()
    assert record["source"] == {
        "file": "cifar_linf_8.pt", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()
    }  # fmt: skip
    assert record["weights_sha256"] == weights_digest(source.network) == weights_digest(loaded.network)
    assert record["tensors"] == len(source.network.state_dict()) == len(load_file(tmp_path / "new/w.safetensors"))
    assert (record["mean"], record["std"], record["transform_input"]) == (CIFAR_MEAN, CIFAR_STD, False)
    assert (record["network"], record["num_classes"]) == (network, 5 if network else None)
    assert (record["key"], record["left_out"]) == ("model", ["epoch", "schedule"])
    assert record["objects_passed_over"] == ["argparse.Namespace"]
    assert "robustness" in record["form"]
    assert record["rules"] == ["the prefix module.model. was taken off"]
    assert sorted(map(len, record["dropped"].values())) == [2, record["tensors"]]
    assert record["versions"]["lit_robust"] == lit_robust.__version__
    assert ("fit lit_robust/resnet_tiny" if network else "not checked against a network") in told
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["w.provenance.json", "w.safetensors"]


def test_again_and_over_another(tmp_path, source, madry):
    output = tmp_path / "w.safetensors"
    convert(madry, output)
    before = output.stat().st_mtime_ns
    convert(madry, output)
    assert output.stat().st_mtime_ns == before
    torch.save(build_classifier(Network(NAME, 5)).network.state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"w\.safetensors exists and holds other weights"):
        convert(tmp_path / "other.pt", output)
    # The same tensors that are said to be normalised otherwise are another file too.
    torch.save(source.network.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(UserError, match="exists and holds other weights"):
        convert(tmp_path / "plain.pt", output)
    assert json.loads((tmp_path / "w.provenance.json").read_text())["source"]["file"] == madry.name


def test_the_record_of_a_file_that_was_there_is_kept(tmp_path, madry):
    output, record = tmp_path / "w.safetensors", tmp_path / "w.provenance.json"
    assert convert(madry, output, NAME, 5).startswith(f"Wrote {output}")
    written, first = record.read_text(), output.read_bytes()
    for same in (output, tmp_path / "." / output.name, tmp_path / "link.safetensors"):
        if not same.exists():
            same.symlink_to(output)
        with pytest.raises(UserError, match=r"w\.safetensors is the source itself: choose another name"):
            convert(same, output)
    # A copy of equal tensors knows less of where they came from.
    shutil.copy(output, tmp_path / "copy.safetensors")
    assert convert(tmp_path / "copy.safetensors", output).startswith(
        f"Left {output} and its w.provenance.json as they are"
    )
    assert (record.read_text(), output.read_bytes()) == (written, first)
    # A record that is lost, or of other weights, is written again.
    for stale in (None, '{"weights_sha256": "0"}'):
        record.unlink() if stale is None else record.write_text(stale)
        assert convert(madry, output, NAME, 5).startswith(f"Wrote {record}")
        assert record.read_text() == written


@pytest.mark.parametrize("said", ["0.5", "[0.5, 0.5]", "[0.5, 0.5, NaN]", "[0.5, 0.5, 1e999]", "grey"])
@pytest.mark.parametrize("option", ["--mean", "--std"])
def test_a_mean_that_is_no_three_numbers(tmp_path, madry, capsys, option, said):
    other = {"--mean": "--std", "--std": "--mean"}[option]
    output = tmp_path / "w.safetensors"
    assert main(["convert", str(madry), str(output), option, said, other, "[0.5, 0.5, 0.5]"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f'{option} "[0.5, 0.5, 0.5]"' in told
    assert "Union" not in told
    assert len(told) < 300
    assert not output.exists()


def test_three_numbers_on_the_command_line(tmp_path, source):
    torch.save(source.network.state_dict(), tmp_path / "w.pt")
    words = ["convert", str(tmp_path / "w.pt"), str(tmp_path / "w.safetensors")]
    assert main([*words, "--mean", "[0.5, 0.4, 0]", "--std=[0.25,0.5,1]"]) == 0
    record = json.loads((tmp_path / "w.provenance.json").read_text())
    assert (record["mean"], record["std"]) == ([0.5, 0.4, 0.0], [0.25, 0.5, 1.0])
    assert main([*words[:2], str(tmp_path / "null.safetensors"), "--mean", "null", "--std", "null"]) == 0
    assert json.loads((tmp_path / "null.provenance.json").read_text())["mean"] is None


@pytest.mark.parametrize("said", ["0.5", "[0.5]", "[0.5, NaN, 0.5]", "[" * 100000])
def test_a_file_that_says_no_three_numbers(tmp_path, said):
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors", {"mean": said})
    with pytest.raises(UserError, match="not a list of three numbers: convert it again") as caught:
        open_checkpoint(tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("mean", "std"), [("[0, 0, 0]", "[1, 1, 0]"), ("[123.7, 116.3, 103.5]", "[0.5, 0.5, 0.5]")])
def test_a_file_that_says_what_no_network_can_normalise_by(tmp_path, source, mean, std):
    file = tmp_path / "w.safetensors"
    save_file({n: t.contiguous() for n, t in source.network.state_dict().items()}, file, {"mean": mean, "std": std})
    with pytest.raises(
        UserError, match=r"not in \[0, 1\] pixel units, or.*as --model\.network\.mean and --model\.network\.std"
    ):
        build_classifier(Network(NAME, 5, weights=str(file)))
    assert build_classifier(Network(NAME, 5, str(file), (0.5,) * 3, (0.5,) * 3)).mean.flatten().tolist() == [0.5] * 3
    with pytest.raises(UserError, match="as --mean and --std"):
        convert(file, tmp_path / "new.safetensors")
    convert(file, tmp_path / "new.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_both_copies(tmp_path, source):
    averaged = source.network.state_dict()
    raw = build_classifier(Network(NAME, 5)).network.state_dict()
    torch.save({"state_dict": raw, "state_dict_ema": averaged}, tmp_path / "two.pt")
    convert(tmp_path / "two.pt", tmp_path / "averaged.safetensors")
    convert(tmp_path / "two.pt", tmp_path / "raw.safetensors", copy="raw")
    for file, expected in [("averaged", averaged), ("raw", raw)]:
        found = load_file(tmp_path / f"{file}.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        rules = json.loads((tmp_path / f"{file}.provenance.json").read_text())["rules"]
        assert rules[0].startswith(f"of two copies of the weights the {file} one")
    torch.save({"state_dict_ema": averaged}, tmp_path / "one.pt")
    with pytest.raises(UserError, match="holds averaged weights alone"):
        convert(tmp_path / "one.pt", tmp_path / "none.safetensors", copy="raw")


@pytest.mark.parametrize(
    ("inside", "mean", "std"),
    [
        ("module.base_model.", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ("module.", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),  # Nothing is known of it, so the user says it.
    ],
)
def test_normalisation_travels_with_the_weights(tmp_path, source, inside, mean, std):
    torch.save({"state_dict": {inside + n: t for n, t in source.network.state_dict().items()}}, tmp_path / "w.pt")
    said = {} if "base_model" in inside else {"mean": mean, "std": std}
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors", **said)
    by_hand = (IMAGES - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(logits_of(tmp_path / "w.safetensors"), source.network(by_hand))
    # A converted file converts to itself.
    convert(tmp_path / "w.safetensors", tmp_path / "again.safetensors")
    assert torch.equal(logits_of(tmp_path / "again.safetensors"), source.network(by_hand))


def test_shared_strided_and_half_tensors(tmp_path):
    base = torch.randn(6, 4).half()
    state = {"a": base.t(), "b": base, "c": base[2:], "n": torch.tensor(3)}
    torch.save(state, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in state.items())
    assert {str(tensor.dtype) for tensor in found.values()} == {"torch.float32", "torch.int64"}
    assert json.loads((tmp_path / "w.provenance.json").read_text())["rules"] == ["torch.float16 became float32"]
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert "mean" not in file.metadata()


@pytest.mark.parametrize(
    ("output", "options", "sentence"),
    [
        ("w.pt", {}, "does not end in .safetensors"),
        ("w.safetensors", {"network": NAME, "num_classes": 7}, "has 5 classes.*set num_classes to 5"),
        ("w.safetensors", {"network": "lit_robust/resnet_small", "num_classes": 5}, "of another network"),
        ("w.safetensors", {"network": "lit_robust/no"}, "Unknown network"),
        ("w.safetensors", {"mean": (0.5, 0.5, 0.5)}, "give both, or neither"),
        ("w.safetensors", {"mean": (0.5,) * 3, "std": (0.5,) * 3}, r'write --mean "\[0.4914, 0.4822, 0.4465\]"'),
        ("w.safetensors", {"mean": (127.0,) * 3, "std": (60.0,) * 3}, "not in .0, 1. pixel units"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, madry, output, options, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        convert(madry, tmp_path / "new" / output, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, madry, monkeypatch):
    def full(path, _content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        convert(madry, tmp_path / "new" / "w.safetensors")
    assert list((tmp_path / "new").iterdir()) == []
