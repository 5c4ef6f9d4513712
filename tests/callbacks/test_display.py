"""What lands in an offline W&B run next to the scalars, read from the run's own file."""

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from wandb_reader import read_run, records

from lit_robust.attacks import PGD
from lit_robust.callbacks import (
    AdversarialAccuracy,
    CleanAccuracy,
    CorruptionEvaluation,
    OodEvaluation,
    ResultsFile,
    SampleImages,
    ShapeBiasEvaluation,
)
from lit_robust.callbacks.display import heat_map, shape_image
from lit_robust.core.results import RunResults
from lit_robust.data import (
    CueConflictDataModule,
    EvaluationCrop,
    ImageNetCDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    RobustnessSuite,
)
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule
from lit_robust.report.dashboard import plan

SMALL = {"eval_batch_size": 16, "num_workers": 0}
WHOLE = {"evaluation": EvaluationCrop(resize=None, crop=None), **SMALL}


def run(toy, folder, *callbacks, limit=None, more=(), **settings):
    import wandb

    torch.manual_seed(3)
    module = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
    sets = [
        ImageNetDataModule(**WHOLE),
        ImageNetCDataModule(severities=[3], name="imagenet-c-like", **SMALL),
        ImageNetODataModule(classes="all", **WHOLE),
        *more,
    ]
    suite = RobustnessSuite(sets, root=toy)
    suite.limit = limit
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loggers = [
        WandbLogger(project="lit-robust", name="test", save_dir=folder, offline=True),
        CSVLogger(folder, name="csv"),
    ]
    callbacks = [*callbacks, SampleImages(examples=3), ResultsFile()]
    trainer = Trainer(default_root_dir=folder, logger=loggers, callbacks=callbacks, **quiet, **settings)
    try:
        trainer.test(module, suite, verbose=False)
    finally:
        wandb.finish()
    # On a busy machine W&B's own process may still be writing its last records.
    (file,) = Path(folder).glob("wandb/offline*/*.wandb")
    waited_until = time.monotonic() + 20
    while not any(record.HasField("exit") for record in records(file)) and time.monotonic() < waited_until:
        time.sleep(0.1)
    place, history, _ = read_run(folder)
    return place / "files", history, list(records(file))


class Doubted(CleanAccuracy):
    def compute(self):
        first, *others = super().compute()
        return [replace(first, warnings=("3 images never moved",)), *others]


@pytest.fixture(scope="module")
def tested(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb run")
    attack = PGD(norm="linf", eps=0.02, step_size=0.02, steps=1, start="none")
    callbacks = [
        Doubted(),
        AdversarialAccuracy(attack, eps=[0.01], examples=2),
        CorruptionEvaluation("imagenet-c-like", baseline=None),
        OodEvaluation(scores=["max_softmax", "energy"]),
    ]
    return folder, *run(toy, folder, *callbacks)


def table(files, entry):
    return json.loads((files / entry["path"]).read_text())


def test_accuracy_by_corruption_and_severity(tested):
    folder, files, history, _ = tested
    found = table(files, history["test/imagenet-c-like/accuracy_by_cell"])
    assert found["columns"] == ["corruption", "severity 3"]
    values = {result.metric: result.value for result in RunResults.load(folder).results}
    assert len(found["data"]) == 15
    for name, value in found["data"]:
        assert value == pytest.approx(values[f"top1_{name}_3"])
    (image,) = history["test/imagenet-c-like/accuracy_by_cell_heat_map"]["filenames"]
    assert Image.open(files / image).size[0] > 200


def test_warnings_stand_in_the_table_of_metrics(tested):
    folder, *_ = tested
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = [{key: cell for key, cell in row.items() if key.endswith("/warnings") and cell} for row in rows]
    assert [row for row in told if row] == [{"test/imagenet/top1/warnings": "3 images never moved"}]


def test_curves(tested):
    folder, files, history, _ = tested
    results = {result.metric: result for result in RunResults.load(folder).results}
    for key in ("precision_recall", "precision_recall_energy"):
        found = table(files, history[f"test/imagenet-o/{key}_table"])
        assert found["columns"] == ["recall", "precision"]
        metric = key.replace("precision_recall", "aupr")
        assert found["data"] == results[metric].protocol["precision_recall"]
    found = table(files, history["test/imagenet/adversarial_accuracy_linf_by_eps_table"])
    assert found["data"] == [
        [0, results["top1"].value],
        [0.01, results["adversarial_accuracy_linf_eps_0.01"].value],
        [0.02, results["adversarial_accuracy_linf_eps_0.02"].value],
    ]


def test_images_of_every_set(tested):
    _, files, history, _ = tested
    for name, start in (("imagenet", "is "), ("imagenet-c-like", "gaussian_noise/3, is "), ("imagenet-o", "")):
        shown = history[f"test/{name}/examples"]
        assert len(shown["filenames"]) == 3
        assert shown["captions"][0].startswith(start)
        assert all("says " in caption for caption in shown["captions"])
        assert all((files / file).is_file() for file in shown["filenames"])
    assert history["test/imagenet-o/examples"]["captions"][-1].startswith("out-of-distribution, says ")


def test_the_results_file_is_an_artifact_and_its_values_the_summary(tested):
    folder, files, _, found = tested
    artifacts = [record.artifact for record in found if record.HasField("artifact")]
    (evaluation,) = [artifact for artifact in artifacts if artifact.type == "evaluation"]
    assert evaluation.name == f"evaluation-{folder.name.replace(' ', '-')}"
    (entry,) = evaluation.manifest.contents
    assert entry.path == "results.json"
    # What a later `wandb sync` uploads is inside the run's own folder.
    assert entry.local_path == str(files / "results.json")
    assert (files / "results.json").read_bytes() == (folder / "results.json").read_bytes()
    summary = summary_of(found)
    for result in RunResults.load(folder).results:
        if result.value == result.value:
            assert summary[result.key] == pytest.approx(result.value, abs=1e-6), result.key
    assert not any("partial" in key for key in summary)


def test_warnings_stand_in_the_summary_beside_their_values_and_in_a_table(tested):
    folder, files, history, found = tested
    doubted = {r.key: " ".join(r.warnings) for r in RunResults.load(folder).results if r.warnings}
    assert list(doubted) == ["test/imagenet/top1"]
    summary = summary_of(found)
    assert {key: summary.get(f"{key}/warnings") for key in doubted} == doubted
    rows = table(files, history["test/warnings"])
    assert (rows["columns"], rows["data"]) == (["measure", "warning"], [list(entry) for entry in doubted.items()])


def test_whatever_a_test_logs_has_a_panel_of_the_workspace(tested):
    folder, _, history, _ = tested
    sections = plan([RunResults.load(folder)])
    shown = {key for section in sections for panel in section.panels for key in panel.keys}
    logged = {key for key in history if key.startswith("test/")}
    assert len(logged) > 30
    assert logged - shown == set()


def summary_of(found):
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in found
        for item in record.summary.update
    }


def test_a_limited_run_is_marked_partial(toy, tmp_path):
    _, _, found = run(toy, tmp_path, CleanAccuracy(), limit_test_batches=1)
    summary = summary_of(found)
    assert (summary["test/imagenet/partial"], summary["test/imagenet/full_count"]) == (True, 41)
    tags = [tuple(record.run.tags) for record in found if record.HasField("run")]
    assert tags[-1] == ("partial",)
    kept = next(r.artifact for r in found if r.HasField("artifact") and r.artifact.type == "evaluation")
    assert '"partial":["imagenet"]' in kept.metadata.replace(" ", "")
    assert summary["score/clean"] == summary["test/imagenet/top1"]
    assert "test/score_card" in "".join(summary)
    assert min(name for name in summary if name != "epoch" and not name.startswith("_")) == "score/clean"
    logged = [{item.key or "/".join(item.nested_key) for item in record.history.item} for record in found]
    assert any("score/clean" in keys for keys in logged)


def test_a_quick_look_shows_as_many_images_as_asked_for_and_marks_them(toy, tmp_path):
    conflict = CueConflictDataModule(categories="shards", **WHOLE)
    callbacks = [
        ShapeBiasEvaluation(examples=4),
        CorruptionEvaluation("imagenet-c-like", baseline=None),
        OodEvaluation(),
    ]
    files, history, _ = run(toy, tmp_path, *callbacks, limit=10, more=[conflict])
    for name, count in (("cue-conflict", 4), ("imagenet", 3), ("imagenet-c-like", 3), ("imagenet-o", 3)):
        shown = history[f"test/{name}/examples"]
        assert len(shown["filenames"]) == count
        assert all(caption.endswith(", partial") for caption in shown["captions"])
    for key in ("cue-conflict/shape_by_category", "imagenet-c-like/accuracy_by_cell_heat_map"):
        assert history[f"test/{key}"]["captions"][0].endswith(", partial")
        assert (files / history[f"test/{key}"]["filenames"][0]).is_file()
    assert history["test/imagenet-o/precision_recall_table"]["nrows"] > 1


def test_shape_decisions_stand_to_the_left():
    pixels = shape_image({"cat": (9, 1), "knife": (1, 9), "boat": (0, 0)}).astype(int)
    blue = np.abs(pixels - (31, 119, 180)).sum(-1) < 30  # Matplotlib's first colour.
    line = int(blue.sum(0).argmax())
    # Two marks, left and right of the line at one half, 10 marks' widths away from it.
    columns = np.flatnonzero(blue.any(0))
    assert columns.min() < line - 60
    assert columns.max() > line + 60
    rows = [np.flatnonzero(blue[:, column]).mean() for column in (columns.min(), columns.max())]
    assert rows[0] < rows[1]
    assert shape_image({"cat": (0, 0)}).dtype == np.uint8


def test_a_heat_map_is_brighter_where_more_is_right():
    pixels = heat_map(["fog", "snow"], [1, 2], [[0.0, 1.0], [None, 0.5]])
    assert pixels.dtype == np.uint8
    dark, bright = ((68, 1, 84), (253, 231, 37))  # Viridis' ends.
    for colour in (dark, bright):
        # One level may be lost to rounding.
        assert (np.abs(pixels.astype(int) - colour) <= 1).all(-1).sum() > 300
