"""Prefixes and entries that laboratories put around a network: taken off by rule, recorded, and never guessed."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier
from lit_robust.models.foreign.checkpoint import open_checkpoint
from lit_robust.models.foreign.convert import convert
from lit_robust.models.foreign.naming import plain_names
from lit_robust.models.weights import read_state_dict

NAME = "lit_robust/resnet_tiny"
CHANNELS = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
STATE = {"conv.weight": torch.ones(2, 3), "norm.running_mean": torch.zeros(2), "fc.bias": torch.ones(5)}
OWN = [*STATE, "norm.num_batches_tracked"]


@pytest.fixture(scope="module")
def source():
    return build_classifier(Network(NAME, 5)).eval()


def prefixed(prefix, state):
    return {prefix + name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


def normaliser(prefix, mean="mean", std="std"):
    return {f"{prefix}.{mean}": CHANNELS[0], f"{prefix}.{std}": CHANNELS[1]}


@pytest.mark.parametrize(
    ("around", "form", "rule"),
    [
        (normaliser("normalize"), "network behind a normaliser (as RobustBench's)", "from behind its normaliser"),
        (normaliser("normalizer", "new_mean", "new_std"), "robustness (MadryLab", "out of its AttackerModel"),
        (normaliser("attacker.normalize", "new_mean", "new_std"), "robustness (MadryLab", "out of its AttackerModel"),
    ],
)
def test_only_an_attacker_is_called_one(tmp_path, source, around, form, rule):
    torch.save({"state_dict": {**around, **prefixed("model.", source.network.state_dict())}}, tmp_path / "w.pt")
    told = convert(tmp_path / "w.pt", tmp_path / "w.safetensors", NAME, 5)
    record = json.loads((tmp_path / "w.provenance.json").read_text())
    assert record["form"].startswith(form)
    assert form in told
    assert [entry for entry in record["rules"] if rule in entry] == record["rules"]
    assert record["mean"] == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("entry", "factor", "said"), [("mean", torch.nan, "nan"), ("mean", 255, "123.675"), ("std", 0, "0.0")]
)
def test_a_normaliser_that_no_network_can_have_is_refused(tmp_path, source, entry, factor, said):
    state = {**normaliser("normalize"), **prefixed("model.", source.network.state_dict())}
    state[f"normalize.{entry}"] = state[f"normalize.{entry}"] * factor
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    for network in (NAME, None):
        with pytest.raises(UserError, match=rf"w\.pt holds a normaliser of .*{entry} \[{said}"):
            convert(tmp_path / "w.pt", tmp_path / "w.safetensors", network, 5)
    with pytest.raises(UserError, match="which no images in .0, 1. have"):
        build_classifier(Network(NAME, 5, weights=str(tmp_path / "w.pt")))


@pytest.mark.parametrize(
    ("prefix", "rules"),
    [
        ("net.", ["net."]),
        ("module.backbone.", ["module.", "backbone."]),
        ("net.module.", ["net.", "module."]),
        ("lit.encoder.net.", ["lit.encoder.net."]),
    ],
)
def test_a_prefix_of_any_name_is_taken_off_where_the_rest_fits(tmp_path, source, prefix, rules):
    torch.save({"state_dict": prefixed(prefix, source.network.state_dict())}, tmp_path / "w.ckpt")
    convert(tmp_path / "w.ckpt", tmp_path / "w.safetensors", NAME, 5)
    images = torch.rand(2, 3, 32, 32)
    for file in ("w.ckpt", "w.safetensors"):
        assert torch.equal(build_classifier(Network(NAME, 5, str(tmp_path / file))).eval()(images), source(images))
    record = json.loads((tmp_path / "w.provenance.json").read_text())
    assert record["rules"] == [f"the prefix {part} was taken off" for part in rules]


def test_a_normalised_network_inside_a_module(source):
    state = source.network.state_dict()
    inside = plain_names({**normaliser("net.normalize"), **prefixed("net.model.", state)}, state)
    behind = plain_names({**normaliser("normalize"), **prefixed("model.net.", state)}, state)
    for found in (inside, behind):
        assert found.tensors.keys() == state.keys()
        assert found.normaliser is not None
        assert torch.equal(found.normaliser[0], CHANNELS[0].flatten())
        assert found.wrappers == ["net."]


@pytest.mark.parametrize(
    "tensors",
    [
        {**prefixed("net.", STATE), "loss.weight": torch.ones(5)},  # Another tensor lacks it.
        {**prefixed("net.", STATE), "net.more.bias": torch.ones(1)},  # The rest is more than the network,
        {f"net.{name}": tensor for name, tensor in STATE.items() if name != "fc.bias"},  # or less.
        {**prefixed("student.", STATE), **prefixed("teacher.", STATE)},  # It could be either.
        {**prefixed("net.student.", STATE), **prefixed("net.teacher.", STATE)},
        prefixed("a.b.c.d.e.", STATE),  # Deeper than any module that is known.
    ],
)
def test_a_prefix_stays_where_the_rest_does_not_fit(tensors):
    found = plain_names(tensors, OWN)
    assert set(tensors) <= found.tensors.keys()
    assert not found.wrappers
    # And always where nobody says what it must fit.
    assert set(prefixed("net.", STATE)) <= plain_names(prefixed("net.", STATE)).tensors.keys()


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        ("", "module.conv.weight", "fc.bias"),
        ("module.", "_orig_mod.conv.weight", "fc.bias"),
        ("module.", "model.conv.weight", "criterion.weight"),
    ],
)
def test_names_that_are_wrapped_in_part_are_not_converted_unchecked(tmp_path, prefix, inside, outside):
    torch.save(prefixed(prefix, {inside: torch.ones(2, 3), outside: torch.ones(5)}), tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt holds .*{inside} bears the prefix .* and {outside} does not"):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_a_network_whose_own_part_is_named_as_a_wrapper_is_converted(tmp_path):
    volo = {"patch_embed.proj.weight": torch.ones(2), **prefixed("network.0.0.", STATE)}
    torch.save(prefixed("module.", volo), tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert open_checkpoint(tmp_path / "w.safetensors").tensors.keys() >= volo.keys()


def test_the_prefix_that_fits_keeps_the_networks_own_beginnings():
    own = prefixed("body.", STATE).keys() | {"body.norm.num_batches_tracked"}
    assert plain_names(prefixed("net.body.", STATE), own).tensors.keys() == own
    assert plain_names(prefixed("body.body.", STATE), own).tensors.keys() == own


@pytest.mark.parametrize("key", ["state_dict", None])
@pytest.mark.parametrize("entry", [3, 0.5, True, "resnet"])
def test_plain_entries_among_the_tensors_are_left_out_and_told(tmp_path, source, caplog, key, entry):
    state = source.network.state_dict()
    mixed = {**state, "epoch": entry}
    torch.save({key: mixed, "lr": 1} if key else mixed, tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        assert read_state_dict(tmp_path / "w.pt").keys() == state.keys()
    assert "left out: epoch" in caplog.text
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors", NAME, 5)
    rules = json.loads((tmp_path / "w.provenance.json").read_text())["rules"]
    assert rules == ["among the tensors these entries are none, and were left out: epoch"]


def test_a_copy_with_a_plain_entry_is_still_the_averaged_one(tmp_path):
    torch.save({"state_dict": STATE, "ema": {**prefixed("", STATE), "decay": 0.999}}, tmp_path / "w.pt")
    assert open_checkpoint(tmp_path / "w.pt").key == "ema"
    # A schedule of that name, without a tensor, is no copy.
    torch.save({"state_dict": STATE, "ema": {"decay": 0.999, "steps": 3}}, tmp_path / "w.pt")
    assert open_checkpoint(tmp_path / "w.pt").key == "state_dict"


def test_book_keeping_of_an_average_is_no_copy(tmp_path, source):
    state = source.network.state_dict()
    torch.save({"state_dict": state, "ema": {"decay": 0.99, "n": torch.tensor(5)}}, tmp_path / "w.pt")
    for network in (NAME, None):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors", network, 5)
    record = json.loads((tmp_path / "w.provenance.json").read_text())
    assert (record["key"], record["tensors"]) == ("state_dict", len(state))
    rule = f"state_dict of {len(state)} tensors was taken, not what else holds some: ema (1)"
    assert record["rules"] == [rule]


def test_the_choice_between_two_raw_copies_is_told(tmp_path):
    torch.save({"model": other(STATE), "state_dict": STATE}, tmp_path / "w.pt")
    opened = open_checkpoint(tmp_path / "w.pt")
    assert (opened.key, opened.notes) == (
        "state_dict", ("state_dict of 3 tensors was taken, not what else holds some: model (3)",)
    )  # fmt: skip
    torch.save({"model": STATE, "state_dict": STATE, "ema": other(STATE)}, tmp_path / "w.pt")
    for copy, key in (("averaged", "ema"), ("raw", "state_dict")):
        opened = open_checkpoint(tmp_path / "w.pt", copy)
        assert (opened.key, len(opened.notes)) == (key, 2)


@pytest.mark.parametrize(
    ("entry", "kind"), [({"lr": 1}, "of type dict"), ([1], "of type list"), (nn.Identity(), "a Python object")]
)
@pytest.mark.parametrize("key", ["state_dict", None])
def test_another_entry_among_the_tensors_is_named(tmp_path, entry, kind, key):
    mixed = {**STATE, "extra": entry}
    torch.save({key: mixed} if key else mixed, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt holds no state dict, since among its tensors 'extra' is {kind}"):
        open_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda t: t.to_sparse(), "sparse_coo"),
        (lambda t: t.to_sparse_csr(), "sparse_csr"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch tells that these tensors are young, or old.
def test_tensors_that_are_not_plain(tmp_path, make, kind):
    torch.save({**STATE, "conv.weight": make(STATE["conv.weight"])}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt holds conv\.weight as {kind}, which no network"):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=rf"w\.pt holds conv\.weight as {kind}, which no network"):
        build_classifier(Network(NAME, 5, weights=str(tmp_path / "w.pt")))


@pytest.mark.parametrize("name", ["\ud800x", "a\nb\x1b[31m"])
@pytest.mark.parametrize("value", [torch.ones(2), 3])
def test_names_that_cannot_be_printed(tmp_path, name, value):
    torch.save({**STATE, name: value}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="names a tensor .*, which cannot be printed") as caught:
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert str(caught.value).isprintable()
    save_file({**STATE, "a\nb": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"names a tensor 'a\\nb', which"):
        open_checkpoint(tmp_path / "w.safetensors")


def test_settings_of_others_under_our_names(tmp_path, source, caplog):
    # Another Lightning module may keep a setting `network` too; its mean is none of ours.
    settings = {"network": {"mean": 0.5, "std": [1, 2]}}
    torch.save(
        {"state_dict": prefixed("model.", source.network.state_dict()), "hyper_parameters": settings},
        tmp_path / "w.ckpt",
    )
    with caplog.at_level(logging.WARNING):
        loaded = build_classifier(Network(NAME, 5, str(tmp_path / "w.ckpt")))
    assert torch.equal(loaded.mean, source.mean)
    assert "the mean in its settings is no list of three numbers" in caplog.text
