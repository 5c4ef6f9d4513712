"""Checkpoints in the form each laboratory writes, loaded strictly; the logits are compared bit by bit."""

import argparse
import json
import logging
import re
import tarfile

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier, weights_digest
from lit_robust.models.foreign.convert import convert
from lit_robust.models.foreign.naming import plain_names
from lit_robust.models.weights import read_state_dict

TINY = Network("lit_robust/resnet_tiny", num_classes=5)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def source():
    """A network whose statistics and counts are not those of a fresh one."""
    model = build_classifier(TINY)
    model(torch.rand(4, 3, 32, 32))
    return model.eval()


def prefixed(prefix, state):
    return {prefix + name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def normaliser(prefix, mean=MEAN, std=STD, names=("new_mean", "new_std")):
    return {f"{prefix}.{names[0]}": mean.view(3, 1, 1), f"{prefix}.{names[1]}": std.view(3, 1, 1)}


def attacker_model(state):
    return {
        **normaliser("module.normalizer"),
        **prefixed("module.model.", state),
        **normaliser("module.attacker.normalize"),
        **prefixed("module.attacker.model.", state),
    }


def auxiliary(name, state):
    """Second batch norms inside the first ones, with values of their own."""
    norms = {key.rsplit(".", 1)[0] for key in state if key.endswith("running_mean")}
    inside = {key for key in state if key.rsplit(".", 1)[0] in norms}
    split = {key: key.rsplit(".", 1) for key in inside}
    return state | {f"{norm}.{name}.{leaf}": state[key] + 1 for key, (norm, leaf) in split.items()}


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


def tuple_of(**more):
    return {"optimizer": {"state": {}}, "epoch": 90, **more}


# What is in each file, and how it is named; the state dict of the network in, the saved value out.
FORMS = {
    "madry.pt": lambda s: tuple_of(model=attacker_model(s), schedule=argparse.Namespace(a=1), amp=None),
    "madry_legacy_key.ckpt": lambda s: tuple_of(state_dict=attacker_model(s)),
    "madry_single_gpu.pt": lambda s: {
        "model": {name.removeprefix("module."): tensor for name, tensor in attacker_model(s).items()}
    },
    "microsoft_more_model.ckpt": lambda s: tuple_of(
        model={**normaliser("module.normalizer"), **prefixed("module.model.model.", s)}
    ),
    "sin.pth.tar": lambda s: tuple_of(state_dict=prefixed("module.", s), arch="resnet50", best_prec1=torch.tensor(1.0)),
    "fast_adversarial.pth.tar": lambda s: tuple_of(state_dict=prefixed("module.", s), arch="x", best_prec1=0.5),
    "robustbench_bare.pt": lambda s: prefixed("module.model.", s),
    "robustbench.pt": lambda s: {"state_dict": prefixed("model.", s)},
    "robustbench_normalised.pt": lambda s: {
        "state_dict": {**normaliser("normalize", names=("mean", "std")), **prefixed("model.", s)}
    },
    "timm_ema.pth.tar": lambda s: tuple_of(
        state_dict=other(s), state_dict_ema=prefixed("module.", s), arch="x", metric=1.0, args=argparse.Namespace(lr=1)
    ),
    "torchvision_reference.pth": lambda s: tuple_of(
        model=other(s), model_ema={"n_averaged": torch.tensor(3), **prefixed("module.", s)},
        lr_scheduler={}, args=argparse.Namespace(lr=1),
    ),
    "compiled.pt": lambda s: prefixed("module._orig_mod.", s),
    "plain.bin": lambda s: s,
    "lightning.ckpt": lambda s: {
        "state_dict": prefixed("model.network.", s), "pytorch-lightning_version": "2.6.6", "hyper_parameters": {"lr": 1}
    },
    "lightning_of_others.ckpt": lambda s: {"state_dict": prefixed("model.", s), "pytorch-lightning_version": "2"},
    "lightning_average.ckpt": lambda s: {
        "state_dict": prefixed("model.network.", s), "current_model_state": prefixed("model.network.", other(s)),
        "averaging_state": {"n_averaged": torch.tensor(2)}, "pytorch-lightning_version": "2.6.6",
    },
    "advprop_ours.ckpt": lambda s: {
        "state_dict": prefixed("model.network.", auxiliary("auxiliary", s)), "pytorch-lightning_version": "2.6.6"
    },
    "split_norm_of_timm.pth": lambda s: {"state_dict": auxiliary("aux_bn.0", s)},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_networks_own_logits(tmp_path, source, form, zipped):
    saved = FORMS[form](source.network.state_dict())
    torch.save(saved, tmp_path / form, _use_new_zipfile_serialization=zipped)
    loaded = build_classifier(Network(TINY.name, 5, weights=str(tmp_path / form))).eval()
    assert torch.equal(loaded(IMAGES), source(IMAGES))
    assert weights_digest(loaded) == weights_digest(source)
    # Without a network to compare with, the names come out the same.
    assert read_state_dict(tmp_path / form).keys() == source.network.state_dict().keys()


@pytest.mark.parametrize(
    ("make", "mean", "std"),
    [
        (lambda s: {"state_dict": prefixed("module.", auxiliary("aux_bn", s))}, 0.5, 0.5),
        (lambda s: {"model_state_dict": prefixed("module.base_model.", s)}, 0.0, 1.0),
    ],
    ids=["AdvProp port", "revisiting-at"],
)
def test_forms_that_normalise_otherwise(tmp_path, source, caplog, make, mean, std):
    torch.save(make(source.network.state_dict()), tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        loaded = build_classifier(Network(TINY.name, 5, weights=str(tmp_path / "w.pt"))).eval()
    assert torch.equal(loaded(IMAGES), source.network((IMAGES - mean) / std))
    assert "normalis" in caplog.text
    # What the user says counts more.
    said = Network(TINY.name, 5, weights=str(tmp_path / "w.pt"), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert build_classifier(said).mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_the_normaliser_of_a_file_is_checked(tmp_path, source):
    state = {
        **normaliser("normalizer", torch.tensor([0.4914, 0.4822, 0.4465])),
        **prefixed("model.", source.network.state_dict()),
    }
    torch.save({"model": state}, tmp_path / "cifar.pt")
    with pytest.raises(UserError, match=r'--model\.network\.mean "\[0\.4914, 0\.4822, 0\.4465\]"'):
        build_classifier(Network(TINY.name, 5, weights=str(tmp_path / "cifar.pt")))
    said = Network(TINY.name, 5, str(tmp_path / "cifar.pt"), (0.4914, 0.4822, 0.4465), (0.229, 0.224, 0.225))
    assert weights_digest(build_classifier(said)) == weights_digest(source)


def test_an_attacker_with_another_network_is_refused(tmp_path, source):
    state = attacker_model(source.network.state_dict())
    state["module.attacker.model.fc.bias"] = state["module.attacker.model.fc.bias"] + 1e-6
    torch.save({"model": state}, tmp_path / "two.pt")
    with pytest.raises(
        UserError, match=r"two\.pt: module\.attacker\.model\.fc\.bias is not the tensor of module\.model\.fc\.bias"
    ):
        read_state_dict(tmp_path / "two.pt")


def test_half_precision(tmp_path, source):
    half = {n: t.half() if t.is_floating_point() else t for n, t in source.network.state_dict().items()}
    torch.save({"state_dict": half}, tmp_path / "half.pt")
    loaded = build_classifier(Network(TINY.name, 5, weights=str(tmp_path / "half.pt"))).network.state_dict()
    assert all(
        tensor.dtype != torch.float16 and torch.equal(tensor, half[n].to(tensor.dtype)) for n, tensor in loaded.items()
    )


def test_counts_that_old_files_lack(tmp_path, source, caplog):
    state = {n: t for n, t in source.network.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(
        {"state_dict": prefixed("module.", state)}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False
    )
    loaded = build_classifier(Network(TINY.name, 5, weights=str(tmp_path / "old.pth.tar"))).eval()
    assert torch.equal(loaded(IMAGES), source(IMAGES))
    assert loaded.network.bn1.num_batches_tracked == 0
    assert "num_batches_tracked was missing" in caplog.text


def test_safetensors_with_prefix_and_any_ending(tmp_path, source):
    save_file(prefixed("module.", source.network.state_dict()), tmp_path / "w.bin")
    loaded = build_classifier(Network(TINY.name, 5, weights=str(tmp_path / "w.bin"))).eval()
    assert torch.equal(loaded(IMAGES), source(IMAGES))


def names_on_meta(builder):
    with torch.device("meta"):
        return builder().state_dict()


ARCHITECTURES = {
    # Each as (network, own spelling -> the other laboratory's).
    "AlexNet of MadryLab": ("alexnet", r"^classifier\.6\.", "last_layer."),
    "AlexNet of Geirhos": ("alexnet", r"^features\.", "features.module."),
    "VGG of Geirhos": ("vgg16", r"^features\.", "features.module."),
    "GoogLeNet of Chen": ("googlenet", r"\.branch4\.1\.", ".branch4_conv."),
    "old DenseNet": ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."),
    "old vision transformer": ("vit_b_16", r"\.mlp\.0\.", ".mlp.linear_1."),
    "Inception": ("inception_v3", "^$", ""),
    "MNASNet": ("mnasnet0_5", "^$", ""),
}


@pytest.mark.parametrize("given_network", [True, False])
@pytest.mark.parametrize("case", ARCHITECTURES)
@pytest.mark.parametrize("wrapper", ["", "module.", "module.model."])
def test_spellings_of_architectures(case, wrapper, given_network):
    name, pattern, spelling = ARCHITECTURES[case]
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    own = names_on_meta(lambda: torchvision.models.get_model(name, **options))
    other_names = {wrapper + re.sub(pattern, spelling, key): tensor for key, tensor in own.items()}
    assert wrapper or pattern == "^$" or other_names.keys() != own.keys()
    (naming,) = plain_names(other_names, own if given_network else ())
    found = naming.tensors
    assert found.keys() == own.keys()
    assert all(found[key] is tensor for key, tensor in own.items())


def test_a_network_that_renames_by_version(tmp_path):
    # torchvision's MNASNet refuses a state dict that does not say by which version it was saved.
    network = torchvision.models.mnasnet0_5(num_classes=3).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = build_classifier(Network("torchvision/mnasnet0_5", 3, weights=str(tmp_path / "w.safetensors"))).eval()
    assert weights_digest(loaded.network) == weights_digest(network)


def names(tensors, own=()):
    (naming,) = plain_names(tensors, own)
    return naming.tensors.keys()


def test_only_true_prefixes_are_taken_off():
    tensors = {"my_module.weight": torch.ones(1), "head.model.module.bias": torch.ones(1)}
    assert names(tensors) == tensors.keys()
    partly = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert names(partly) == partly.keys()
    # A network whose own names begin so keeps them.
    own = {"model.a": torch.ones(1), "model.b": torch.ones(1)}
    assert names(prefixed("module.", own), own) == own.keys()
    # Another network's head of that name is none of AlexNet's.
    head = {"last_layer.weight": torch.ones(1)}
    assert names(head) == head.keys()


@pytest.fixture(scope="module")
def heads():
    """torchvision's GoogLeNet as its own weights were saved: with auxiliary classifiers."""
    return torchvision.models.googlenet(aux_logits=True, init_weights=False, num_classes=1000).eval()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_googlenet_from_its_entry_and_from_its_file(tmp_path, monkeypatch, heads, ending):
    state, file = heads.state_dict(), tmp_path / f"googlenet.{ending}"
    (save_file if ending == "safetensors" else torch.save)(state, file)
    entry = torchvision.models.GoogLeNet_Weights
    monkeypatch.setattr(entry, "get_state_dict", lambda self, *args, **kwargs: state)
    by_entry = build_classifier(Network("torchvision/googlenet", weights="IMAGENET1K_V1")).eval()
    by_file = build_classifier(Network("torchvision/googlenet", weights=str(file))).eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(by_entry(images), by_file(images))
    assert weights_digest(by_entry) == weights_digest(by_file)
    # torchvision's own network, on what its own transforms would give it.
    reference = torchvision.models.googlenet(weights=entry.IMAGENET1K_V1).eval()
    normalised = (images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    # Another memory format may sum in another order: a few roundings of logits of order 1.
    torch.testing.assert_close(by_file(images), reference(normalised), rtol=1e-4, atol=1e-5)
    plain = build_classifier(Network("torchvision/googlenet"))
    assert not plain.network.transform_input
    assert not any(name.startswith("aux") for name in plain.network.state_dict())


def test_googlenet_trained_by_others_is_not_rescaled(tmp_path, heads):
    state = {n.replace(".branch4.1.", ".branch4_conv."): t for n, t in heads.state_dict().items()}
    torch.save({"model": attacker_model(state)}, tmp_path / "chen.pt")
    torch.save({"state_dict": prefixed("module.", heads.state_dict())}, tmp_path / "own_training.pth.tar")
    ours = {n: t for n, t in heads.state_dict().items() if not n.startswith("aux")}
    network = {"name": "torchvision/googlenet", "weights": None}
    torch.save(
        {"state_dict": prefixed("model.network.", ours), "hyper_parameters": {"network": network}}, tmp_path / "a.ckpt"
    )
    network = {"name": "torchvision/googlenet", "weights": "IMAGENET1K_V1"}
    torch.save(
        {"state_dict": prefixed("model.network.", ours), "hyper_parameters": {"network": network}}, tmp_path / "b.ckpt"
    )
    found = {
        name: build_classifier(Network("torchvision/googlenet", weights=str(tmp_path / name))).network.transform_input
        for name in ("chen.pt", "own_training.pth.tar", "a.ckpt", "b.ckpt")
    }
    assert found == {"chen.pt": False, "own_training.pth.tar": False, "a.ckpt": False, "b.ckpt": True}


def ours(state, **network):
    return {"state_dict": prefixed("model.network.", state), "hyper_parameters": {"network": {"name": "x", **network}}}


def test_what_our_checkpoints_were_trained_from_says_how_they_normalise(tmp_path, source, caplog):
    state, start = source.network.state_dict(), tmp_path / "start.safetensors"
    said = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"}
    save_file(prefixed("", state), start, said)
    torch.save(ours(state, weights=str(start)), tmp_path / "tuned.ckpt")
    torch.save(ours(state, weights=str(tmp_path / "tuned.ckpt")), tmp_path / "twice.ckpt")
    torch.save(ours(state, weights=str(tmp_path / "itself.ckpt"), mean=[0.1, 0.2, 0.3]), tmp_path / "itself.ckpt")
    for name in ("tuned", "twice", "itself"):
        loaded = build_classifier(Network(TINY.name, 5, weights=str(tmp_path / f"{name}.ckpt")))
        assert loaded.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    start.unlink()
    caplog.clear()
    build_classifier(Network(TINY.name, 5, weights=str(tmp_path / "twice.ckpt")))
    assert "start.safetensors, which is not there" in caplog.text


def test_a_tar_archive(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    with tarfile.open(tmp_path / "w.pth.tar", "w") as archive:
        archive.add(tmp_path / "w.pth", "w.pth")
    with pytest.raises(UserError, match="is a tar archive: unpack it"):
        read_state_dict(tmp_path / "w.pth.tar")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: download"),
        (b"  \n<!DOCTYPE html><html>Quota exceeded</html>", "is a web page, not weights"),
        (b"<html>not found</html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x00" * 100, "cannot be read as weights"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors", "pth.tar"])
def test_files_that_are_no_weights(tmp_path, content, sentence, ending):
    file = tmp_path / f"w.{ending}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        build_classifier(Network(TINY.name, 5, weights=str(file)))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_class_count_is_said(tmp_path, source):
    torch.save({"model": attacker_model(source.network.state_dict())}, tmp_path / "five.pt")
    with pytest.raises(UserError, match="has 5 classes.*set num_classes to 5"):
        build_classifier(Network(TINY.name, 7, weights=str(tmp_path / "five.pt")))


def asgd(state):
    """What torch's own averaging optimiser keeps for each parameter, after a step."""
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in state.values() if tensor.is_floating_point()]
    optimiser = torch.optim.ASGD(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    return optimiser.state_dict()


def adam(state):
    moments = {"exp_avg": torch.zeros(500_000), "exp_avg_sq": torch.zeros(500_000), "step": torch.tensor(1.0)}
    return {"state": {0: moments}, "param_groups": []}


# Averages that no state dict to choose holds, as the code that keeps them saves them: place in the file, what is there.
AVERAGES = {
    "callbacks.StochasticWeightAveraging.average_model_state": lambda s: {
        "callbacks": {"StochasticWeightAveraging": {"n_averaged": 3, "average_model_state": other(s)}}
    },
    "callbacks.Kept.state": lambda s: {"callbacks": {"Kept": {"state": other(s)}}},
    "ema.shadow_params": lambda s: {  # torch-ema
        "ema": {"decay": 0.99, "num_updates": 3, "shadow_params": list(other(s).values()), "collected_params": None}
    },
    "optimizer.state.*.ax": lambda s: {"optimizer": asgd(s)},
    "optimizer_states.*.ema": lambda s: {"optimizer_states": [{"optimizer": {}, "ema": tuple(other(s).values())}]},
    "": lambda s: {
        "optimizer": adam(s), "callbacks": {"Stop": {"best": torch.tensor(1.0)}}, "ema_of_loss": [torch.tensor(0.3)]
    },
}  # fmt: skip


@pytest.mark.parametrize("place", AVERAGES)
def test_an_average_that_is_not_read_is_named(tmp_path, source, caplog, place):
    state = source.network.state_dict()
    torch.save({"state_dict": state, **AVERAGES[place](state)}, tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        loaded = build_classifier(Network(TINY.name, 5, str(tmp_path / "w.pt")))
    assert weights_digest(loaded) == weights_digest(source)
    said = f"what may be an average of the weights stands in {place}, which is not read here"
    assert (said in caplog.text) if place else ("average" not in caplog.text)
    convert(tmp_path / "w.pt", tmp_path / "w.safetensors", TINY.name, 5)
    rules = json.loads((tmp_path / "w.provenance.json").read_text())["rules"]
    assert sum(rule.startswith(said) for rule in rules) == bool(place)


@pytest.mark.parametrize("key", ["unaveraged", "no_ema", "not_averaged", "without_swa", "non_ema_weights"])
def test_a_name_that_denies_an_average_is_not_one(tmp_path, source, key):
    state = source.network.state_dict()
    for own in ("state_dict", "best"):
        torch.save({key: other(state), own: state}, tmp_path / "w.pt")
        assert weights_digest(build_classifier(Network(TINY.name, 5, str(tmp_path / "w.pt")))) == weights_digest(source)


def test_totals_of_a_profiler_are_named(tmp_path, source, caplog):
    state = source.network.state_dict()
    torch.save({**state, "fc.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}, tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors", TINY.name, 5)
    said = "2 totals of a counter of operations, as a profiler leaves them, were left out: fc.total_ops, total_params"
    assert said in caplog.text
    assert said in json.loads((tmp_path / "w.provenance.json").read_text())["rules"]


def test_a_list_that_holds_itself_is_looked_through_once(tmp_path, source):
    ring = []
    ring += [ring] * 100
    torch.save({"state_dict": source.network.state_dict(), "callbacks": {"ema": ring}}, tmp_path / "w.pt")
    assert read_state_dict(tmp_path / "w.pt").keys() == source.network.state_dict().keys()
