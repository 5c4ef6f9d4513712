"""The whole way on tiny data, by the command line a user types: data, fit, test, predict, report."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from url_server import serving
from wandb_reader import read_run

from lit_robust.cli import main
from lit_robust.core.results import RunResults
from lit_robust.data.packing.toy import toy_sets
from lit_robust.models.network import resnet_tiny
from lit_robust.stimuli.figures import CLASS_NAMES

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]

IMAGENET = [
    "--data.class_path",
    "lit_robust.data.ImageNetDataModule",
    "--data.evaluation",
    "{resize: null, crop: null}",
]

RANKS = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
PLAIN = "{crop: none, size: 48, flip: true}"


def options(config, run, data):
    return ["-c", str(CONFIGS / config), "--trainer.default_root_dir", str(run), "--data.root", str(data), *TINY]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, toy):
    """A standard and an adversarial network, trained and tested."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("standard", "adversarial"):
        settings = options(f"toy/{name}.yaml", folder / name, toy)
        assert main(["fit", *settings]) == 0
        assert main(["test", *settings, "--ckpt_path", str(folder / name / "checkpoints" / "last.ckpt")]) == 0
    return folder


def test_results_hold_every_value_with_its_count_and_protocol(runs):
    found = RunResults.load(runs / "adversarial")
    values = {(result.dataset, result.metric): result for result in found.results}
    assert {"top1", "top5", "adversarial_accuracy_l2_eps_2"} <= {metric for _, metric in values}
    assert values["imagenet", "top1"].count == 41
    attack = values["imagenet", "adversarial_accuracy_l2_eps_2"].protocol["attack"]
    assert (attack["norm"], attack["eps"], attack["step_size"], attack["steps"]) == ("l2", 2.0, 1.0, 3)
    decisions = [values["cue-conflict", f"{kind}_decisions"].value for kind in ("shape", "texture", "other")]
    assert sum(decisions) == values["cue-conflict", "shape_bias"].count == 36
    assert values["cue-conflict", "accuracy_without_conflict"].count == 5
    assert values["cue-conflict", "shape_bias_disc"].count == sum(cue == "disc" for cue in shapes_in_conflict())
    assert found.model["module"] == "AdversarialModule"
    assert found.model["settings"]["attack"]["eps"] == 2.0
    assert len(found.model["weights_sha256"]) == 64
    assert found.run["command"].startswith("lit-robust test -c ")


def test_a_training_logs_losses_rates_speed_and_adversarial_accuracy(runs):
    with (runs / "adversarial" / "csv" / "version_0" / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    for key in ("train/loss", "lr-SGD", "train/images_per_second", "val/top1", "val/adversarial_top1"):
        assert any(row[key] for row in logged), key


def test_a_training_may_log_nothing(toy, tmp_path):
    """Lightning's monitor of learning rates, which the recipe has, refuses a trainer without loggers."""
    short = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    assert main(["fit", *options("toy/standard.yaml", tmp_path / "run", toy), *short]) == 0
    assert not (tmp_path / "run" / "csv").exists()


def shapes_in_conflict():
    """The outlines of the toy data's conflict figures, by the drawing's own list."""
    return [CLASS_NAMES[outline] for outline, texture in toy_sets(101, 41)[4].cues if outline != texture]


def test_accuracy_never_rises_with_eps(runs):
    for name in ("standard", "adversarial"):
        values = {result.metric: result.value for result in RunResults.load(runs / name).results}
        curve = [values["top1"], *(values[f"adversarial_accuracy_l2_eps_{eps}"] for eps in ("0.5", "1", "2"))]
        assert curve == sorted(curve, reverse=True)


def test_examples_are_pictures_in_the_run_folder(runs):
    examples = RunResults.load(runs / "standard").examples
    assert {example.kind for example in examples} == {"adversarial", "cue-conflict"}
    for example in examples:
        for file in example.images.values():
            assert (runs / "standard" / file).read_bytes().startswith(b"\x89PNG")


def test_offline_wandb_run_holds_scalars_config_table_and_images(runs):
    folder, history, config = read_run(runs / "adversarial" / "wandb")
    values = {f"test/{r.dataset}/{r.metric}": r.value for r in RunResults.load(runs / "adversarial").results}
    for key, value in values.items():
        if value == value:
            assert history[key] == pytest.approx(value, abs=1e-6), key
    assert config["model"]["init_args"]["attack"]["init_args"]["eps"] == 2.0
    images = history["test/imagenet/adversarial_accuracy_l2_examples"]
    assert images["_type"] == "images/separated"
    assert all(re.match(r"(clean|adversarial): is \w+, says \w+$", caption) for caption in images["captions"])
    assert all((folder / "files" / name).is_file() for name in images["filenames"])
    table = json.loads((folder / "files" / history["test/cue-conflict/decisions"]["path"]).read_text())
    assert table["columns"][:4] == ["category", "shape", "texture", "other"]
    assert sum(sum(row[1:4]) for row in table["data"]) == 36


def test_csv_log_has_losses_and_results(runs):
    files = sorted((runs / "standard" / "csv").glob("*/metrics.csv"))
    columns = {name for file in files for name in next(csv.reader(file.open()))}
    assert {"train/loss", "val/top1", "test/imagenet/top1", "test/cue-conflict/shape_bias"} <= columns


def test_report_compares_the_runs(runs, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["report", str(runs / "standard"), str(runs / "adversarial"), "-o", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    assert "standard" in text
    assert "adversarial" in text
    assert text.count("<svg") >= 2
    assert text.count("data:image/png") > 20


def test_validate_and_predict(runs, toy):
    settings = options("toy/standard.yaml", runs / "standard", toy)
    last = str(runs / "standard" / "checkpoints" / "last.ckpt")
    assert main(["validate", *settings, "--ckpt_path", last]) == 0
    assert main(["predict", *settings, "--ckpt_path", last]) == 0
    rows = list(csv.DictReader((runs / "standard" / "predictions.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(41))
    correct = sum(row["label"] == row["prediction"] for row in rows)
    top1 = next(r for r in RunResults.load(runs / "standard").results if r.metric == "top1")
    assert correct / 41 == pytest.approx(top1.value)


def test_limited_test_is_marked_partial(runs, toy, tmp_path):
    settings = options("toy/standard.yaml", tmp_path, toy)
    last = str(runs / "standard" / "checkpoints" / "last.ckpt")
    clean = json.dumps([{"class_path": "lit_robust.callbacks.CleanAccuracy"}])
    third = ["--trainer.limit_test_batches", "0.34", "--data.eval_batch_size", "8"]
    small = ["--trainer.callbacks", clean, *IMAGENET, *third]
    assert main(["test", *settings, *small, "--ckpt_path", last]) == 0
    found = RunResults.load(tmp_path)
    top1 = next(r for r in found.results if r.metric == "top1")
    assert (top1.count, top1.protocol["partial"], top1.protocol["full_count"]) == (16, True, 41)
    assert found.run["checkpoint_sha256"] == hashlib.sha256(Path(last).read_bytes()).hexdigest()


def test_a_limit_of_one_batch_is_one_batch(runs, toy, tmp_path):
    settings = options("toy/standard.yaml", tmp_path, toy)
    last = str(runs / "standard" / "checkpoints" / "last.ckpt")
    clean = json.dumps([{"class_path": "lit_robust.callbacks.CleanAccuracy"}])
    small = ["--trainer.callbacks", clean, *IMAGENET, "--data.eval_batch_size", "8", "--ckpt_path", last]
    (tmp_path / "one.yaml").write_text("trainer: {limit_test_batches: 1}")
    for one in (["--trainer.limit_test_batches", "1"], ["-c", str(tmp_path / "one.yaml")]):
        assert main(["test", *settings, *small, *one]) == 0
        top1 = next(r for r in RunResults.load(tmp_path).results if r.metric == "top1")
        assert (top1.count, top1.protocol["partial"]) == (8, True)


def test_a_resumed_run_keeps_the_settings_it_is_given(runs, toy, tmp_path, capsys):
    last = str(runs / "adversarial" / "checkpoints" / "last.ckpt")
    settings = options("toy/adversarial.yaml", tmp_path, toy)
    assert main(["fit", *settings, "--ckpt_path", last, "--model.optimisation.learning_rate", "0.001"]) == 0
    kept = yaml.safe_load((tmp_path / "config-fit.yaml").read_text())
    assert kept["model"]["init_args"]["optimisation"]["learning_rate"] == 0.001
    capsys.readouterr()
    assert main(["fit", *options("toy/advprop.yaml", tmp_path / "other", toy), "--ckpt_path", last]) == 2
    assert "a run goes on with its own recipe" in capsys.readouterr().err


def test_weights_are_kept_where_the_last_checkpoint_is_not_there_yet(toy, tmp_path):
    """Resubmitted jobs say `--ckpt_path last` from their first start on."""
    weights = {name: torch.full_like(t, 0.0123) for name, t in resnet_tiny(8).state_dict().items()}
    torch.save(weights, tmp_path / "w.pt")
    words = ["--model.network.weights", str(tmp_path / "w.pt"), "--ckpt_path", "last"]
    settings = [*options("toy/standard.yaml", tmp_path / "run", toy), "--model.optimisation.learning_rate", "1e-9"]
    assert main(["fit", *settings, *words]) == 0
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(state["model.network.conv1.weight"], weights["conv1.weight"], rtol=0, atol=1e-6)


def test_a_validation_by_itself_is_attacked(runs, toy, capsys):
    last = str(runs / "adversarial" / "checkpoints" / "last.ckpt")
    assert main(["validate", *options("toy/adversarial.yaml", runs / "adversarial", toy), "--ckpt_path", last]) == 0
    assert "val/adversarial_top1" in capsys.readouterr().out


def command(words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lit_robust", *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_quick_look_takes_some_images_and_says_so(runs, toy, tmp_path, capsys):
    """``--limit``: the same 10 images of each set, on two ranks or one, marked as partial."""
    last = str(runs / "standard" / "checkpoints" / "last.ckpt")
    one = options("toy/standard.yaml", tmp_path / "one", toy)
    assert main(["test", *one, "--ckpt_path", last, "--limit", "10"]) == 0
    assert "partial" in capsys.readouterr().out
    done = command(["test", *options("toy/standard.yaml", tmp_path / "two", toy), *RANKS, "--ckpt_path", last,
                    "--limit", "10"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = RunResults.load(tmp_path / "one").results
    assert [(r.key, r.value, r.count) for r in RunResults.load(tmp_path / "two").results] == [
        (r.key, r.value, r.count) for r in found
    ]
    assert all(r.protocol["partial"] for r in found)
    top1 = next(r for r in found if r.metric == "top1")
    assert (top1.count, top1.protocol["full_count"]) == (10, 41)
    assert main(["test", *one, "--ckpt_path", last, "--limit", "0"]) == 2
    assert main(["fit", *one, "--limit", "10"]) == 2


def test_two_ranks_give_the_results_of_one(runs, toy, tmp_path):
    """Exact counts and the same random starts: 41 samples, which neither two ranks nor batches of 8 divide."""
    attack = {"class_path": "lit_robust.attacks.PGD", "init_args": {"eps": 1.0, "steps": 2, "start": "ball"}}
    callbacks = json.dumps(
        [
            {"class_path": "lit_robust.callbacks.CleanAccuracy"},
            {"class_path": "lit_robust.callbacks.AdversarialAccuracy", "init_args": {"attack": attack, "eps": [0.5]}},
            {"class_path": "lit_robust.callbacks.ShapeBiasEvaluation"},
        ]
    )
    last = str(runs / "adversarial" / "checkpoints" / "last.ckpt")
    words = ["--trainer.callbacks", callbacks, "--ckpt_path", last]
    assert main(["test", *options("toy/adversarial.yaml", tmp_path / "one", toy), *words]) == 0
    overlay = yaml.safe_load((CONFIGS / "toy/adversarial.yaml").read_text())["data"]
    for member in overlay["init_args"]["members"]:
        member["init_args"]["eval_batch_size"] = 8
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"data": overlay}))
    settings = ["-c", str(CONFIGS / "toy/adversarial.yaml"), "-c", str(tmp_path / "small.yaml"), *TINY]
    settings += ["--trainer.default_root_dir", str(tmp_path / "two"), "--data.root", str(toy)]
    done = command(["test", *settings, *RANKS, *words])
    assert done.returncode == 0, done.stderr
    one, two = RunResults.load(tmp_path / "one"), RunResults.load(tmp_path / "two")
    assert (one.run["ranks"], two.run["ranks"]) == (1, 2)
    assert [(r.key, r.value, r.count) for r in one.results] == [(r.key, r.value, r.count) for r in two.results]
    assert [r.interval for r in one.results] == [r.interval for r in two.results]
    assert [(e.index, e.captions) for e in one.examples] == [(e.index, e.captions) for e in two.examples]


def test_two_ranks_train_the_network_of_one(toy, tmp_path):
    """Madry training on two ranks of 16 images is that on one of 32, for a network without batch norm."""
    # Smooth activations and layer norm: rounding does not grow as it does at the kinks of ReLUs.
    network = ["--model.network.name", "timm/convnext_atto", "--trainer.max_epochs", "1"]
    keep = json.dumps(
        [{"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": {"dirpath": "checkpoints"}}]
    )
    words = [*IMAGENET, *network, "--trainer.callbacks", keep, "--model.optimisation.learning_rate", "0.01"]
    one = options("toy/adversarial.yaml", tmp_path / "one", toy)
    assert main(["fit", *one, *words, "--data.batch_size", "32", "--data.training", PLAIN]) == 0
    two = options("toy/adversarial.yaml", tmp_path / "two", toy)
    done = command(["fit", *two, *words, "--data.batch_size", "16", "--data.training", PLAIN, *RANKS])
    assert done.returncode == 0, done.stderr
    weights = [
        torch.load(next((tmp_path / run / "checkpoints").glob("*.ckpt")), weights_only=True) for run in ("one", "two")
    ]
    assert weights[0]["global_step"] == weights[1]["global_step"] == 3
    for name, tensor in weights[0]["state_dict"].items():
        torch.testing.assert_close(weights[1]["state_dict"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_killed_in_mid_epoch_a_run_goes_on_to_the_same_weights(toy, tmp_path, reader):
    """Kill -9 after step 5 of 2 epochs of 3 batches of 32, restart: the weights of an uninterrupted run, bit by bit.

    The numbers of worker processes differ. The stream comes through a server on the loopback interface.
    """
    every_step = json.dumps(
        [
            {
                "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
                "init_args": {"dirpath": "checkpoints", "save_last": True, "every_n_train_steps": 1},
            },
            {"class_path": "kill_callback.KillAfter", "init_args": {"step": 5}},
        ]
    )
    batch = [*IMAGENET, "--data.batch_size", "32", "--data.training", "{crop: padded, size: 48, flip: true}"]

    def words(run, workers, *more):
        settings = [*options("toy/adversarial.yaml", run, root), *batch, "--data.num_workers", workers]
        return ["fit", *settings, "--trainer.callbacks", every_step, *more]

    with serving(toy) as (url, _):
        root = {"indexed": toy, "stream": url}[reader]
        killed = command(words(tmp_path / "killed", "2"), KILL="yes")
        assert killed.returncode == -9, killed.stderr
        last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
        assert main(words(tmp_path / "killed", "1", "--ckpt_path", str(last))) == 0
        assert main(words(tmp_path / "whole", "0")) == 0
    one = torch.load(last, weights_only=True)
    two = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert one["global_step"] == two["global_step"] == 6
    for name, tensor in two["state_dict"].items():
        assert torch.equal(one["state_dict"][name], tensor), name


def test_a_checkpoint_by_time_waits_for_gathered_gradients(toy, tmp_path):
    """Killed before the sixth of 8 batches, of which three make a step: the fourth and fifth are taken again."""
    last, copy = tmp_path / "whole/checkpoints/last.ckpt", tmp_path / "killed.ckpt"
    by_time = {"dirpath": "checkpoints", "save_top_k": 0, "save_last": True, "train_time_interval": "0:00:00"}
    at_end = {"dirpath": "checkpoints", "filename": "end"}
    callbacks = [
        {"class_path": "kill_callback.CopyBefore", "init_args": {"batch": 5, "file": str(last), "copy": str(copy)}},
        {"class_path": "lit_robust.callbacks.CheckpointBetweenSteps", "init_args": by_time},
        {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": at_end},
    ]
    words = [*IMAGENET, "--data.batch_size", "12", "--data.training", PLAIN, "--trainer.accumulate_grad_batches", "3"]
    weights = []
    for run, kept, more in (("whole", callbacks, []), ("resumed", callbacks[1:], ["--ckpt_path", str(copy)])):
        settings = [*options("toy/adversarial.yaml", tmp_path / run, toy), *words, "--trainer.max_epochs", "1"]
        assert main(["fit", *settings, "--trainer.callbacks", json.dumps(kept), *more]) == 0
        weights.append(torch.load(tmp_path / run / "checkpoints/end.ckpt", weights_only=True))
    assert torch.load(copy, weights_only=True)["global_step"] == 1
    assert weights[0]["global_step"] == weights[1]["global_step"] == 3
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(weights[1]["state_dict"][name], tensor), name
