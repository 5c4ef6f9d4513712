"""Prefixes and entries that laboratories put around a network: taken off by rule, recorded, and never guessed."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier, weights_digest
from lit_robust.models.foreign.checkpoint import open_checkpoint
from lit_robust.models.foreign.convert import convert
from lit_robust.models.foreign.naming import plain_names
from lit_robust.models.foreign.reading import read_weights
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
    ("around", "form"),
    [
        (normaliser("normalize"), "network behind a normaliser (as RobustBench's)"),
        (normaliser("normalizer", "new_mean", "new_std"), "robustness (MadryLab"),
        (normaliser("attacker.normalize", "new_mean", "new_std"), "robustness (MadryLab"),
    ],
)
def test_only_an_attacker_is_called_one(tmp_path, source, around, form):
    torch.save({"state_dict": {**around, **prefixed("model.", source.network.state_dict())}}, tmp_path / "w.pt")
    told = convert(tmp_path / "w.pt", tmp_path / "w.safetensors", NAME, 5)
    record = json.loads((tmp_path / "w.provenance.json").read_text())
    assert record["form"].startswith(form)
    assert form in told
    assert record["rules"] == ["the prefix model. was taken off"]
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
    "prefix", ["net.", "module.backbone.", "net.module.", "lit.encoder.net.", "a.b.c.d.e.", "1.", "module.model.1."]
)
def test_a_prefix_of_any_name_is_taken_off_where_the_rest_fits(tmp_path, source, prefix):
    torch.save({"state_dict": prefixed(prefix, source.network.state_dict())}, tmp_path / "w.ckpt")
    convert(tmp_path / "w.ckpt", tmp_path / "w.safetensors", NAME, 5)
    images = torch.rand(2, 3, 32, 32)
    for file in ("w.ckpt", "w.safetensors"):
        assert torch.equal(build_classifier(Network(NAME, 5, str(tmp_path / file))).eval()(images), source(images))
    record = json.loads((tmp_path / "w.provenance.json").read_text())
    assert record["rules"] == [f"the prefix {prefix} was taken off"]


def test_a_normalised_network_inside_a_module(source):
    state = source.network.state_dict()
    inside = plain_names({**normaliser("net.normalize"), **prefixed("net.model.", state)}, state)
    behind = plain_names({**normaliser("normalize"), **prefixed("model.net.", state)}, state)
    for found in (*inside, *behind):
        assert found.tensors.keys() == state.keys()
        assert found.normaliser is not None
        assert torch.equal(found.normaliser[0], CHANNELS[0].flatten())
    assert [found.prefix for found in (*inside, *behind)] == ["net.model.", "model.net."]


@pytest.mark.parametrize(
    "tensors",
    [
        {**prefixed("net.", STATE), "net.more.bias": torch.ones(1)},  # The rest is more than the network,
        {f"net.{name}": tensor for name, tensor in STATE.items() if name != "fc.bias"},  # or less.
    ],
)
def test_a_prefix_stays_where_the_rest_does_not_fit(tensors):
    (found,) = plain_names(tensors, OWN)
    assert set(tensors) <= found.tensors.keys()
    assert not found.prefix
    # And always where nobody says what it must fit.
    assert set(prefixed("net.", STATE)) <= plain_names(prefixed("net.", STATE))[0].tensors.keys()


CHECKPOINTED = "_checkpoint_wrapped_module."
INSIDE = {
    "a compiled part": lambda s: {n.replace("layers.0.", "layers.0._orig_mod."): t for n, t in s.items()},
    "a part below DataParallel": lambda s: {n.replace("layers.1.", "layers.1.module."): t for n, t in s.items()},
    "checkpointed blocks": lambda s: {n.replace(".0.conv1", f".0.{CHECKPOINTED}conv1"): t for n, t in s.items()},
    "all of them": lambda s: {
        "module._orig_mod." + n.replace("layers.2.", f"layers.2.module.{CHECKPOINTED}"): t for n, t in s.items()
    },
}


@pytest.mark.parametrize("case", INSIDE)
def test_wrappers_inside_names_are_taken_off(tmp_path, source, case):
    state = source.network.state_dict()
    wrapped = INSIDE[case](state)
    assert not wrapped.keys() & state.keys() or wrapped.keys() != state.keys()
    torch.save({"state_dict": wrapped}, tmp_path / "w.pt")
    assert weights_digest(build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))) == weights_digest(source)


OUTSIDE = {
    "buffers on top": lambda s: {**s, "mu": CHANNELS[0], "sigma": CHANNELS[1]},
    "buffers of a wrapped network": lambda s: prefixed("module.", {**s, "mean": CHANNELS[0], "std": CHANNELS[1]}),
    "buffers next to the model": lambda s: {**prefixed("model.", s), "mu": CHANNELS[0], "sigma": CHANNELS[1]},
    "a layer next to the model": lambda s: {**prefixed("model.", s), **normaliser("norm")},
    "a layer before it": lambda s: {**prefixed("1.", s), **normaliser("0")},
    "a layer of another name": lambda s: {**prefixed("net.", s), **normaliser("input", "pixel_mean", "pixel_std")},
}  # fmt: skip


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_normaliser_beside_the_network_is_compared(tmp_path, source, case):
    torch.save(OUTSIDE[case](source.network.state_dict()), tmp_path / "w.pt")
    assert weights_digest(build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))) == weights_digest(source)
    with pytest.raises(UserError, match=r"w\.pt was trained with mean \[0\.485, 0\.456, 0\.406\]"):
        build_classifier(Network(NAME, 5, str(tmp_path / "w.pt"), mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize(
    ("prefix", "left"),
    [
        ("", {"criterion.weight": torch.ones(5)}),
        ("", {"train_acc.tp": torch.zeros(5), "val_metrics.f1.fp": torch.zeros(5)}),
        ("model.", {"model.loss_fn.weight": torch.ones(5)}),
        ("model.", {"head.weight": torch.ones(5), "queue": torch.ones(9)}),
        ("net.", {"mean": torch.ones(3)}),  # A mean without its deviation normalises nothing.
    ],
)
def test_what_stands_beside_the_network_is_left_and_named(tmp_path, source, caplog, prefix, left):
    torch.save({**prefixed(prefix, source.network.state_dict()), **left}, tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        loaded = build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))
    assert weights_digest(loaded) == weights_digest(source)
    assert f"{len(left)} tensors stand outside the network and were left: {', '.join(left)}" in caplog.text


def test_what_is_neither_the_networks_nor_known_is_refused(tmp_path, source):
    torch.save({**source.network.state_dict(), "attention.weight": torch.ones(5)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"holds 1 unknown tensors \(first attention\.weight\)"):
        build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))


def test_totals_of_a_counter_of_operations_are_left(tmp_path, source):
    state = source.network.state_dict()
    counted = {f"{name.rpartition('.')[0]}.total_ops": torch.zeros(1) for name in state}
    torch.save({**state, **counted, "total_params": torch.zeros(1)}, tmp_path / "w.pt")
    assert weights_digest(build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))) == weights_digest(source)


PLACES = {
    "weights": lambda s, o: {"weights": s, "epoch": 3},
    "params": lambda s, o: {"params": s},
    "checkpoint.state_dict": lambda s, o: {"checkpoint": {"state_dict": s, "optimizer": {0: {"m": s["fc.bias"]}}}},
    "0": lambda s, o: [s, {"epoch": 1}],
    "swa_best": lambda s, o: {"swa_best": s, "best": o},
    "ema_model": lambda s, o: {"ema_model": prefixed("module.", s), "model": o},
    "swa_state_dict": lambda s, o: {"state_dict": o, "swa_state_dict": s},
    "model_state_dict": lambda s, o: {"unaveraged_model_state_dict": o, "model_state_dict": s},
    "state_dict": lambda s, o: {"state_dict": {**prefixed("model.", o), **prefixed("ema_model.module.", s)}},
    "a model inside itself": lambda s, o: {"state_dict": {**o, **prefixed("ema.", s)}},
    "of two, that of the network": lambda s, o: {"backbone": s, "detector": prefixed("net.", STATE)},
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_the_copy_that_counts_is_found_wherever_it_stands(tmp_path, source, caplog, case):
    state = source.network.state_dict()
    torch.save(PLACES[case](state, other(state)), tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        loaded = build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))
    assert weights_digest(loaded) == weights_digest(source)
    holds_two = "best" in case or "model" in case or ("state_dict" in case and "checkpoint" not in case)
    assert ("of two copies of the weights the averaged one" in caplog.text) == holds_two
    if holds_two:
        raw = build_classifier(Network(NAME, 5, str(tmp_path / "w.pt"), copy="raw"))
        assert all(torch.equal(tensor, other(state)[name]) for name, tensor in raw.network.state_dict().items())


@pytest.mark.parametrize("key", ["optimizer", "optimizer_states", "lr_schedulers", "callbacks", "scaler"])
def test_the_states_of_what_trains_a_network_are_no_copies(tmp_path, key):
    torch.save({"params": STATE, key: [{"momentum": other(STATE)}]}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").key == "params"


@pytest.mark.parametrize("inside", [True, False])
def test_copies_without_an_order_are_listed_and_one_is_chosen_by_name(tmp_path, source, inside):
    state = source.network.state_dict()
    copies = {"student": other(state), "teacher": state}
    nested = {f"{copy}.{name}": tensor for copy, tensors in copies.items() for name, tensor in tensors.items()}
    torch.save({"state_dict": nested} if inside else copies, tmp_path / "w.pt")
    place = "state_dict." if inside else ""
    listed = rf"{place}student \(74 tensors\), {place}teacher \(74 tensors\)"
    with pytest.raises(UserError, match=rf"w\.pt holds several copies of the weights, {listed}: choose one"):
        build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))
    for label in {"teacher", f"{place}teacher"}:
        chosen = build_classifier(Network(NAME, 5, str(tmp_path / "w.pt"), copy=label))
        assert weights_digest(chosen) == weights_digest(source)
    with pytest.raises(UserError, match=rf"w\.pt holds no copy 'tutor', but {listed}"):
        build_classifier(Network(NAME, 5, str(tmp_path / "w.pt"), copy="tutor"))


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        ("", "module.conv.weight", "fc.bias"),
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
    assert open_checkpoint(tmp_path / "w.safetensors").states[""].keys() >= volo.keys()


def test_the_prefix_that_fits_keeps_the_networks_own_beginnings():
    own = prefixed("body.", STATE).keys() | {"body.norm.num_batches_tracked"}
    assert plain_names(prefixed("net.body.", STATE), own)[0].tensors.keys() == own
    assert plain_names(prefixed("body.body.", STATE), own)[0].tensors.keys() == own


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
    assert rules == ["these entries among the tensors are not tensors, and were left out: epoch"]


def test_a_copy_with_a_plain_entry_is_still_the_averaged_one(tmp_path):
    torch.save({"state_dict": STATE, "ema": {**prefixed("", STATE), "decay": 0.999}}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").key == "ema"
    # A schedule of that name, without a tensor, is no copy.
    torch.save({"state_dict": STATE, "ema": {"decay": 0.999, "steps": 3}}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").key == "state_dict"


def test_book_keeping_of_an_average_is_no_copy(tmp_path, source):
    state = source.network.state_dict()
    torch.save({"state_dict": state, "ema": {"decay": 0.99, "n": torch.tensor(5)}}, tmp_path / "w.pt")
    for network in (NAME, None):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors", network, 5)
    record = json.loads((tmp_path / "w.provenance.json").read_text())
    assert (record["key"], record["tensors"]) == ("state_dict", len(state))
    rule = "state_dict was taken, not what else holds tensors: ema (1 tensors)"
    assert record["rules"] == [rule]


def test_the_choice_between_two_raw_copies_is_told(tmp_path):
    torch.save({"model": other(STATE), "state_dict": STATE}, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert (found.key, found.rules[0]) == (
        "state_dict", "state_dict was taken, not what else holds tensors: model (3 tensors)"
    )  # fmt: skip
    torch.save({"model": STATE, "state_dict": STATE, "ema": other(STATE)}, tmp_path / "w.pt")
    for copy, key in (("averaged", "ema"), ("raw", "state_dict")):
        found = read_weights(tmp_path / "w.pt", copy=copy)
        assert found.key == key
        assert sum("was taken, not" in rule for rule in found.rules) == 2


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
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.to_sparse_csr(), "sparse"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch tells that these tensors are young, or old.
def test_tensors_that_are_not_plain(tmp_path, make, kind):
    torch.save({**STATE, "conv.weight": make(STATE["conv.weight"])}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt holds conv\.weight as a {kind} tensor, which no network"):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=rf"w\.pt holds conv\.weight as a {kind} tensor, which no network"):
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
    assert "the mean in its settings is not a list of three numbers" in caplog.text


def test_normalisers_that_differ_are_refused(tmp_path, source):
    state = {**prefixed("model.", source.network.state_dict()), **normaliser("normalize"), **normaliser("other")}
    state["other.std"] = state["other.std"] + 1e-3
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="two normalisers that differ, normalize.mean and another"):
        build_classifier(Network(NAME, 5, str(tmp_path / "w.pt")))
