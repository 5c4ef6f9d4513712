"""An interrupted test goes on at the set it was in, and finds what an uninterrupted one finds."""

import json

import pytest
import torch
import yaml
from stop_callback import StopAt

from lit_robust.cli import main
from lit_robust.models.resnet_small import resnet_tiny
from lit_robust.results import RunResults

PGD = {"class_path": "lit_robust.attacks.PGD", "init_args": {"eps": 0.5, "step_size": 0.5, "steps": 1, "start": "ball"}}
CALLBACKS = [
    # Its clean set comes last here: it cannot be finished before.
    {"class_path": "CorruptionEvaluation", "init_args": {"dataset": "imagenet-c-like", "baseline": None}},
    {"class_path": "OodEvaluation"},
    {"class_path": "AdversarialAccuracy", "init_args": {"dataset": "imagenet-a", "attack": PGD, "examples": 2}},
    {"class_path": "CleanAccuracy", "init_args": {"dataset": "imagenet-a"}},
    {"class_path": "CleanAccuracy"},
    {"class_path": "ShapeBiasEvaluation", "init_args": {"examples": 2}},
]
ORDER = ["imagenet-o", "imagenet-a", "imagenet-c-like", "cue-conflict", "imagenet"]
WHOLE = {"evaluation": {"resize": None, "crop": None}, "eval_batch_size": 16, "num_workers": 0}


def member(kind, **settings):
    return {"class_path": f"lit_robust.data.{kind}DataModule", "init_args": settings}


@pytest.fixture(scope="module")
def recipe(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(4)
    torch.save(resnet_tiny(8).state_dict(), folder / "weights.pt")
    callbacks = [{**one, "class_path": f"lit_robust.callbacks.{one['class_path']}"} for one in CALLBACKS]
    network = {"name": "lit_robust/resnet_tiny", "num_classes": 8, "weights": str(folder / "weights.pt")}
    members = [
        member("ImageNetO", classes="all", **WHOLE),
        member("ImageNetA", classes="all", **WHOLE),
        member("ImageNetC", severities=[3], name="imagenet-c-like", eval_batch_size=64, num_workers=0),
        member("CueConflict", categories="shards", **WHOLE),
        member("ImageNet", **WHOLE),
    ]
    content = {
        "seed_everything": 5,
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [*callbacks, {"class_path": "stop_callback.StopAt"}],
        },
        "model": {"class_path": "lit_robust.modules.StandardModule", "init_args": {"network": network}},
        "data": {"class_path": "lit_robust.data.RobustnessSuite", "init_args": {"root": str(toy), "members": members}},
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(content))
    return folder / "test.yaml"


def run(recipe, folder, *words):
    """Test, and return which sets were read."""
    StopAt.read.clear()
    code = main(["test", "-c", str(recipe), "--trainer.default_root_dir", str(folder), *words])
    assert code == 0
    return list(StopAt.read)


def stop(recipe, folder, name, monkeypatch):
    monkeypatch.setenv("STOP_AT", name)
    with pytest.raises(InterruptedError, match=name):
        run(recipe, folder)
    monkeypatch.delenv("STOP_AT")
    assert not (folder / "results.json").exists()


def told(folder):
    content = RunResults.load(folder)
    values = [(r.key, None if r.value != r.value else r.value, r.unit, r.count, r.protocol) for r in content.results]
    return values, content.examples, content.model


def test_a_test_goes_on_at_the_set_it_was_in(recipe, tmp_path, monkeypatch):
    assert run(recipe, tmp_path / "whole") == ORDER
    whole = told(tmp_path / "whole")
    stopped = tmp_path / "stopped"
    stop(recipe, stopped, "cue-conflict", monkeypatch)
    kept = [json.loads(file.read_text()) for file in (stopped / "unfinished-test").glob("*/results.json")]
    labels = {one["run"]["label"] for one in kept}
    assert labels == {
        "OodEvaluation on imagenet-o",
        "adversarial_accuracy_l2 on imagenet-a",
        "CleanAccuracy on imagenet-a",
    }
    stop(recipe, stopped, "imagenet", monkeypatch)
    # Relative errors need the clean set, so the corrupted one is read again.
    assert run(recipe, stopped) == ["imagenet-c-like", "imagenet"]
    assert told(stopped) == whole
    assert set(RunResults.load(stopped).run["resumed"]) == {*labels, "ShapeBiasEvaluation on cue-conflict"}
    assert not (stopped / "unfinished-test").exists()
    # It has ended: another starts anew.
    assert run(recipe, stopped) == ORDER
    assert RunResults.load(stopped).run["resumed"] == []


def test_other_settings_or_weights_start_anew(recipe, tmp_path, monkeypatch):
    for words in (["--seed_everything", "6"], "weights"):
        stop(recipe, tmp_path, "imagenet-c-like", monkeypatch)
        if words == "weights":
            torch.manual_seed(7)
            torch.save(resnet_tiny(8).state_dict(), recipe.with_name("weights.pt"))
            words = []
        assert run(recipe, tmp_path, *words) == ORDER
        (tmp_path / "results.json").unlink()
