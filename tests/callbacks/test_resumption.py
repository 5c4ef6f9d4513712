"""An interrupted test goes on at the set it was in, and finds what an uninterrupted one finds."""

import json
import sys
from typing import ClassVar

import pytest
import torch
import yaml
from pytorch_lightning.loggers.logger import DummyLogger
from stop_callback import StopAt

from lit_robust.callbacks import ErrorConsistencyEvaluation
from lit_robust.cli import main
from lit_robust.core.results import RunResults
from lit_robust.models.network import resnet_tiny

PGD = {"class_path": "lit_robust.attacks.PGD", "init_args": {"eps": 0.5, "step_size": 0.5, "steps": 1, "start": "ball"}}
CALLBACKS = [
    # Its clean set comes last here: it cannot be finished before, and takes both of its sets again.
    {"class_path": "CorruptionEvaluation", "init_args": {"dataset": "imagenet-c-like", "baseline": None}},
    {"class_path": "OodEvaluation"},
    {"class_path": "AdversarialAccuracy", "init_args": {"dataset": "imagenet-a", "attack": PGD, "examples": 2}},
    {"class_path": "CleanAccuracy", "init_args": {"dataset": "imagenet-a"}},
    {"class_path": "CorrectSamples", "init_args": {"dataset": "imagenet-a"}},
    {"class_path": "CleanAccuracy"},
    {"class_path": "ShapeBiasEvaluation", "init_args": {"examples": 2}},
]
ORDER = ["imagenet-o", "imagenet-a", "imagenet-c-like", "cue-conflict", "imagenet"]
WHOLE = {"evaluation": {"resize": None, "crop": None}, "eval_batch_size": 16, "num_workers": 0}


class Listening(DummyLogger):
    """Takes images and tables, as W&B does."""

    heard: ClassVar[list] = []

    def log_image(self, key, images, caption):
        self.heard.append((key, [image.tolist() for image in images], caption))

    def log_table(self, key, columns, data):
        self.heard.append((key, columns, data))


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


def stop(recipe, folder, name, monkeypatch, *words):
    monkeypatch.setenv("STOP_AT", name)
    with pytest.raises(InterruptedError, match=name):
        run(recipe, folder, *words)
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
        "CorrectSamples on imagenet-a",
    }
    stop(recipe, stopped, "imagenet", monkeypatch)
    # Relative errors need the clean set, too, which has not come: the corrupted one is read again.
    assert run(recipe, stopped) == ["imagenet-c-like", "imagenet"]
    assert told(stopped) == whole
    lists = [(folder / "correct-imagenet-a.json").read_text() for folder in (tmp_path / "whole", stopped)]
    assert lists[0] == lists[1]
    assert set(RunResults.load(stopped).run["resumed"]) == {*labels, "ShapeBiasEvaluation on cue-conflict"}
    assert not (stopped / "unfinished-test").exists()
    # It has ended: another starts anew.
    assert run(recipe, stopped) == ORDER
    assert RunResults.load(stopped).run["resumed"] == []


def test_loggers_are_shown_again_what_was_finished(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "listening", sys.modules[__name__])
    logger = ["--trainer.logger", "listening.Listening"]
    shown = {
        "test/imagenet-a/adversarial_accuracy_l2_examples",
        "test/cue-conflict/decisions",
        "test/cue-conflict/examples",
    }

    def heard():
        # SampleImages shows others at the end, of the sets that were read.
        return sorted(one for one in Listening.heard if one[0] in shown)

    Listening.heard.clear()
    run(recipe, tmp_path / "whole", *logger)
    whole = heard()
    assert {key for key, *_ in whole} == shown
    stop(recipe, tmp_path / "stopped", "imagenet", monkeypatch, *logger)
    Listening.heard.clear()
    run(recipe, tmp_path / "stopped", *logger)
    assert heard() == whole


def test_other_decisions_start_anew(tmp_path):
    """The name of a file is in the settings, and not what it holds."""
    file = tmp_path / "decisions.csv"
    file.write_text("model,image,decision\n")
    evaluation = ErrorConsistencyEvaluation(file)
    before = evaluation.inputs_sha256
    file.write_text("model,image,decision\nsubject-01,a-b,cat\n")
    assert evaluation.inputs_sha256 != before
    assert ErrorConsistencyEvaluation(tmp_path).inputs_sha256 == evaluation.inputs_sha256


def test_other_settings_or_weights_start_anew(recipe, tmp_path, monkeypatch):
    for words in (["--seed_everything", "6"], "weights"):
        stop(recipe, tmp_path, "imagenet-c-like", monkeypatch)
        if words == "weights":
            torch.manual_seed(7)
            torch.save(resnet_tiny(8).state_dict(), recipe.with_name("weights.pt"))
            words = []
        assert run(recipe, tmp_path, *words) == ORDER
        (tmp_path / "results.json").unlink()
