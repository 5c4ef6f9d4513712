"""A run's folder belongs to one run; an interrupted one says what it kept, and goes on as if nothing had happened."""

import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from wandb_reader import records

from lit_robust.callbacks.results_file import check_replaced
from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults

CONFIGS = Path(__file__).parents[2] / "configs"
LAST = {
    "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
    "init_args": {"dirpath": "checkpoints", "save_last": True},
}
EVALUATION = {"class_path": "lit_robust.callbacks.CleanAccuracy"}
HOLDER = """
import pathlib, sys
from lit_robust.core.files import held_alone
with held_alone(pathlib.Path(sys.argv[1]), ""):
    print("held", flush=True)
    sys.stdin.read()
"""


def at(**settings):
    return {"class_path": "kill_callback.SignalAt", "init_args": settings}


PGD = {"class_path": "lit_robust.attacks.PGD", "init_args": {"eps": 1.0}}


def measure(name, **settings):
    entry = {"class_path": f"lit_robust.callbacks.{name}", "init_args": settings}
    return f"--trainer.callbacks={json.dumps([entry])}"


def words(command, run, data, *callbacks, recipe="standard"):
    """Two epochs of three batches, without loggers."""
    return [
        command,
        "-c",
        str(CONFIGS / f"toy/{recipe}.yaml"),
        f"--data.root={data}",
        f"--trainer.default_root_dir={run}",
        "--data.class_path=lit_robust.data.ImageNetDataModule",
        "--data.evaluation={resize: null, crop: null}",
        "--data.training={crop: none, size: 48, flip: true}",
        "--data.batch_size=32",
        "--trainer.max_epochs=2",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        f"--trainer.callbacks={json.dumps([*([LAST] if recipe != 'cache' else []), EVALUATION, *callbacks])}",
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy):
    """A run that nobody interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(words("fit", run, toy)) == 0
    return run


def said(capsys):
    """What the command line itself said, without the loggers' and Lightning's words."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-robust: ")]


def state(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_finished_training_says_its_best_value_and_the_command_that_tests_it(toy, tmp_path, capsys):
    best = {
        "class_path": LAST["class_path"],
        "init_args": {"dirpath": "checkpoints", "monitor": "val/top1", "mode": "max"},
    }
    assert main([*words("fit", tmp_path / "run", toy, best), "--trainer.max_epochs=1"]) == 0
    out = capsys.readouterr().out
    assert "StandardModule: lit_robust/resnet_tiny, 308,568 parameters." in out
    assert "FLOPs" not in out
    assert re.search(rf"The best val/top1 is 0\.\d+, of {tmp_path}/run/checkpoints/\S+\.ckpt\.$", out, re.MULTILINE)
    command = re.search(rf"The training is in {tmp_path}/run\. To test it: (.*)", out)[1]
    assert command.endswith(f"--ckpt_path {tmp_path}/run/checkpoints/last.ckpt")
    assert main(shlex.split(command)[1:]) == 0
    assert f"As a page: lit-robust report {tmp_path}/run -o {tmp_path}/run/report.html" in capsys.readouterr().out
    assert main([*shlex.split(command)[1:], "--report"]) == 0
    assert f"As a page: {tmp_path}/run/report.html\n" in capsys.readouterr().out
    assert "<h1>Robustness of run</h1>" in (tmp_path / "run" / "report.html").read_text()


def test_the_last_checkpoint_is_not_the_best_of_a_recipe_that_keeps_both(toy, tmp_path, capsys):
    """As the recipes of Tiny ImageNet do, which name the best one first."""
    kind, place = LAST["class_path"], {"dirpath": "checkpoints", "enable_version_counter": False}
    best = {"class_path": kind, "init_args": {**place, "filename": "best", "monitor": "val/top1", "mode": "max"}}
    last = {"class_path": kind, "init_args": {**place, "filename": "last"}}
    for savers, tested in (([best, last], "last"), ([best], "best")):
        run = tmp_path / tested
        command = [*words("fit", run, toy)[:-1], f"--trainer.callbacks={json.dumps(savers)}", "--trainer.max_epochs=1"]
        assert main(command) == 0
        out = capsys.readouterr().out
        assert (f"The last checkpoint is {run}/checkpoints/last.ckpt." in out) == (tested == "last")
        assert out.count("The last checkpoint is") == (tested == "last")
        assert f"of {run}/checkpoints/best.ckpt." in out
        assert out.rstrip().endswith(f"--ckpt_path {run}/checkpoints/{tested}.ckpt")


def test_a_second_run_is_refused_with_the_two_ways_out(whole, toy, capsys):
    """Lightning would write last-v1.ckpt, and the test of last.ckpt would test the first network."""
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main([*words("fit", whole, toy), "--seed_everything=7"]) == 2
    (sentence,) = said(capsys)
    newest = re.search(r"holds another run's \S+\.ckpt: go on with that run by --ckpt_path (\S+), or give", sentence)[1]
    assert Path(newest).parent == whole / "checkpoints"
    assert sentence.endswith("this one a folder of its own, by --trainer.default_root_dir.")
    assert {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()} == before


def test_another_runs_checkpoint_is_not_resumed_among_a_third_ones(whole, toy, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "third")
    last = ["--ckpt_path", str(whole / "checkpoints" / "last.ckpt"), "--trainer.max_epochs=3"]
    assert main([*words("fit", tmp_path / "third", toy), *last]) == 2
    assert "holds another run's" in said(capsys)[-1]
    # Its own folder, or an empty one, it may go on in; so may a job that Lightning has queued again.
    assert main([*words("fit", tmp_path / "new", toy), *last]) == 0
    assert state(tmp_path / "new")["global_step"] == 9


def test_lightnings_own_way_of_queueing_a_job_again_stays(whole, toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(whole / "checkpoints" / "last.ckpt", tmp_path / "run" / "hpc_ckpt_1.ckpt")
    fit = [*words("fit", tmp_path / "run", toy), "--trainer.max_epochs=3"]
    assert main(fit) == 2
    assert "hpc_ckpt_1.ckpt: go on with that run by --ckpt_path" in said(capsys)[-1]
    monkeypatch.setattr("lightning_fabric.plugins.environments.SLURMEnvironment.detect", staticmethod(lambda: True))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert main(fit) == 0
    assert state(tmp_path / "run")["global_step"] == 9


def test_results_alone_are_another_runs_too(toy, tmp_path, capsys):
    RunResults({}, {}, [], []).save(tmp_path)
    assert main(words("fit", tmp_path, toy)) == 2
    (sentence,) = said(capsys)
    assert f"{tmp_path} holds another run's results.json: give this one a folder of its own" in sentence


@pytest.mark.parametrize("limit", ["--limit=3", "--trainer.limit_test_batches=1", "--trainer.limit_test_batches=0.5"])
def test_a_quick_look_does_not_replace_the_results_of_a_whole_test(toy, tmp_path, capsys, limit):
    whole = [
        Result("imagenet", "top1", 0.5, "fraction", 41, {}),
        Result("x", "top1", 0.5, "fraction", 3, {"partial": True}),
    ]
    file = RunResults({}, {}, whole, []).save(tmp_path)
    before = file.read_bytes()
    assert main([*words("test", tmp_path, toy), limit]) == 2
    assert f"{tmp_path} holds the results of a whole test, which those of a part of its" in said(capsys)[-1]
    assert file.read_bytes() == before
    # A whole test replaces them, a quick look another one's, and what is damaged; the first is the usual way.
    RunResults({}, {}, whole[1:], []).save(tmp_path)
    check_replaced(tmp_path, None, None, partial=True)
    file.write_text("{")
    check_replaced(tmp_path, None, None, partial=True)
    check_replaced(tmp_path / "nowhere", None, None, partial=True)


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (("a/net", "w.pt", None), None),
        (("a/net", "./w.pt", None), None),
        ((None, "w.pt", None), None),
        (("a/net", "other.pt", None), "of a test of a/net, w.pt, which those of a test of a/net, other.pt would"),
        (("b/net", "w.pt", None), "of a test of a/net, w.pt, which those of a test of b/net, w.pt would"),
        ((None, "last.ckpt", None), "of a test of a/net, w.pt, which those of a test of last.ckpt would"),
        (
            ("a/net", "w.pt", "jacobian"),
            "of a test of a/net, w.pt, which those of the study jacobian of a/net, w.pt would",
        ),
    ],
)
def test_results_of_another_network_or_study_are_not_replaced(tmp_path, monkeypatch, now, sentence):
    monkeypatch.chdir(tmp_path)
    found = [Result("imagenet", "top1", 0.5, "fraction", 41, {})]
    RunResults({}, {"network": "a/net", "weights": "w.pt"}, found, []).save(tmp_path)
    if sentence is None:
        check_replaced(tmp_path, *now)
        return
    with pytest.raises(UserError, match=f"holds the results {sentence} replace: .* by --(trainer.default|output)"):
        check_replaced(tmp_path, *now)


def test_a_second_network_into_a_tests_folder_is_refused_before_it_is_built(toy, tmp_path, capsys):
    found = [Result("imagenet", "top1", 0.5, "fraction", 41, {})]
    RunResults({}, {"network": "torchvision/resnet18", "weights": "w.pt"}, found, []).save(tmp_path)
    assert main(words("test", tmp_path, toy)) == 2
    assert f"{tmp_path} holds the results of a test of torchvision/resnet18, w.pt" in said(capsys)[-1]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_of_two_at_once_the_second_is_refused(toy, tmp_path, capsys, command):
    holder = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        assert main(words(command, tmp_path, toy)) == 2
        first.stdin.close()
    assert f"Another command works in {tmp_path}: wait for it" in said(capsys)[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_leaves_no_folder(toy, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(words("fit", tmp_path / "file" / "run", toy)) == 2
    assert f"Cannot write {tmp_path}/file/run (Not a directory): choose another folder." in said(capsys)[-1]
    assert main(words("fit", tmp_path / "run", tmp_path / "nowhere")) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("command", "recipe", "more", "expected"),
    [
        ("fit", "standard", ["--model.network.num_classes=5"], "The network has 5 classes"),
        ("fit", "standard", ["--data.batch_size=1000"], "holds 101 training images, fewer than one batch of 1000"),
        ("fit", "standard", ["--data.root=/nowhere"], "There is no folder /nowhere/imagenet"),
        ("validate", "standard", ["--model.network.num_classes=5"], "The network has 5 classes"),
        ("predict", "standard", ["--model.network.num_classes=5"], "The network has 5 classes"),
        ("test", "standard", ["--model.network.num_classes=5"], "The network has 5 classes"),
        ("test", "standard", ["--trainer.callbacks.dataset=imagenet-o"], "evaluates 'imagenet-o', but the data have"),
        ("test", "standard", [f"--trainer.callbacks+={EVALUATION['class_path']}"], "Two callbacks evaluate"),
        ("test", "standard", [measure("AdversarialAccuracy", attack=PGD, threat_model="gray-box")], "a single network"),
        ("test", "standard", [measure("ThetaSearch")], "ThetaSearch is for a CacheModule"),
        ("test", "standard", [measure("OodEvaluation", dataset="imagenet")], "has no images out of distribution"),
        ("test", "standard", [measure("CorruptionEvaluation", dataset="imagenet")], "imagenet has no corruptions"),
        ("test", "standard", [measure("ClassSubsetAccuracy")], "imagenet has 8 classes"),
        ("test", "standard", [measure("SampleRestriction", files=["/nowhere.json"])], "/nowhere.json"),
        ("fit", "cache", ["--model.network.weights=null", "--model.layer=layer9"], "layer9"),
        ("test", "cache", ["--model.network.weights=null", "--model.memory=/nowhere"], "/nowhere"),
        ("test", "standard", ["--model.network.weights=/nowhere.pt"], "There is no weights file /nowhere.pt"),
    ],
)
def test_a_mistake_is_found_before_a_logger_starts(toy, tmp_path, capsys, monkeypatch, command, recipe, more, expected):
    class Started(CSVLogger):
        @property
        def experiment(self):
            raise AssertionError("a logger has started")

    monkeypatch.setattr("pytorch_lightning.loggers.CSVLogger", Started)
    logger = "--trainer.logger=pytorch_lightning.loggers.CSVLogger"
    assert (
        main([*words(command, tmp_path / "run", toy, recipe=recipe), logger, "--trainer.logger.save_dir=.", *more]) == 2
    )
    assert expected in said(capsys)[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_training_goes_on_by_the_command_it_says(whole, toy, tmp_path, capsys, name, code):
    """In the first epoch, where nothing else has written a checkpoint."""
    run = tmp_path / "a run"
    processes, threads = set(multiprocessing.active_children()), set(threading.enumerate())
    assert main([*words("fit", run, toy, at(hook="batch", step=1, name=name)), "--data.num_workers=2"]) == code
    # Nothing that reads is left, and no thread that would write to it.
    assert set(multiprocessing.active_children()) <= processes
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("QueueFeeder"):
            thread.join(20)
            assert not thread.is_alive()
    (sentence,) = said(capsys)
    kept, command = re.search(r"interrupted; (.*) holds all that was done\. To go on: (.*)", sentence).groups()
    assert kept == str(run / "checkpoints" / "requeue.ckpt")
    assert torch.load(kept, weights_only=True)["global_step"] == 2
    assert main(shlex.split(command)[1:]) == 0
    one, two = state(run), state(whole)
    assert one["global_step"] == two["global_step"] == 6
    for tensor in two["state_dict"]:
        assert torch.equal(one["state_dict"][tensor], two["state_dict"][tensor]), tensor
    assert not (run / "checkpoints" / "requeue.ckpt").exists()


def test_two_ranks_that_are_interrupted_save_once_and_say_once_how_to_go_on(toy, tmp_path):
    """A terminal's Ctrl-C reaches both."""
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8", "--data.num_workers=0"]
    done = subprocess.run(
        [sys.executable, "-m", "lit_robust", *words("fit", tmp_path, toy, at(hook="batch", step=1)), *ranks],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert kept.name == "requeue.ckpt"
    # All ranks end after the same batch: the second after that in which they heard, as each asks the others meanwhile.
    assert torch.load(kept, weights_only=True)["global_step"] == 3
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("lit-robust: ")]
    assert sentence.startswith(f"lit-robust: interrupted; {kept} holds all that was done. To go on: lit-robust fit -c ")
    assert "Traceback" not in done.stderr
    assert "weights_only" not in done.stderr  # Lightning's remark where a save does not say what it wants.


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), (None, 0)])
def test_a_run_of_wandb_is_told_how_the_training_ended(toy, tmp_path, monkeypatch, name, code):
    """A run that a queue ended would otherwise stand as finished in a list of runs. Lightning's settings are W&B's."""
    warned = []
    monkeypatch.setattr("wandb.termwarn", lambda *words, **more: warned.append((words, more)))
    logger = {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"save_dir": ".", "offline": True}}
    stopped = [at(hook="batch", step=1, name=name)] if name else []
    more = [f"--trainer.logger={json.dumps(logger)}", "--trainer.max_epochs=1", "--data.num_workers=0"]
    assert main([*words("fit", tmp_path, toy, *stopped), *more]) == code
    (file,) = tmp_path.glob("wandb/offline*/*.wandb")
    waited_until = time.monotonic() + 20
    while not (ends := [one.exit.exit_code for one in records(file) if one.HasField("exit")]):
        assert time.monotonic() < waited_until, "W&B's own process wrote no end"
        time.sleep(0.1)
    assert ends == [code]
    assert "anonymous" not in str(warned)


def test_ctrl_c_twice_ends_at_once_and_names_the_newest_checkpoint(toy, tmp_path, capsys):
    assert main(words("fit", tmp_path, toy, at(hook="batch", step=5, times=2))) == 130
    (sentence,) = said(capsys)
    assert f"interrupted; {tmp_path}/checkpoints/" in sentence
    assert "holds what was done until it was written. To go on: lit-robust fit" in sentence


def test_nothing_is_said_to_be_kept_where_nothing_was(toy, tmp_path, capsys):
    assert main(words("fit", tmp_path, toy, at(hook="sanity"))) == 130
    assert said(capsys) == [
        "lit-robust: interrupted before the first checkpoint; nothing of the training is kept: start it again."
    ]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_test_says_that_it_goes_on(toy, tmp_path, capsys, name, code):
    assert main([*words("test", tmp_path, toy, at(hook="test", name=name)), "--data.eval_batch_size=8"]) == code
    (sentence,) = said(capsys)
    assert "measures that were finished are kept, and the same command goes on" in sentence
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_prediction_leaves_no_part_of_its_file(toy, tmp_path, capsys, name, code):
    processes = set(multiprocessing.active_children())
    stopped = [*words("predict", tmp_path / "run", toy, at(hook="predict", name=name)), "--data.eval_batch_size=8"]
    assert main([*stopped, "--data.num_workers=2"]) == code
    assert len(said(capsys)) == 1
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config-predict.yaml"]
    assert set(multiprocessing.active_children()) <= processes


def test_an_interrupted_memory_goes_on_by_the_same_command(whole, toy, tmp_path, capsys):
    """It keeps its keys in its own folder, and takes no checkpoint."""

    def fit(*callbacks):
        weights = f"--model.network.weights={whole}/checkpoints/last.ckpt"
        more = [weights, f"--model.memory={tmp_path}/memory", "--data.eval_batch_size=8"]
        return main([*words("fit", tmp_path / "run", toy, *callbacks, recipe="cache"), *more])

    assert fit(at(hook="batch")) == 130
    assert said(capsys)[-1] == "lit-robust: interrupted; what was finished is kept, and the same command goes on."
    assert not (tmp_path / "memory").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert fit() == 0
    assert (tmp_path / "memory").is_dir()
