"""The workspace: its plan against the runs' keys, its building against a stand-in of the package, offline."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from naming import named
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger

from lit_robust import modules
from lit_robust.callbacks import Throughput
from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.core.results import Example, Result, RunResults
from lit_robust.data import EvaluationCrop, ImageNetDataModule, TrainingCrop
from lit_robust.models import Network
from lit_robust.report import dashboard
from lit_robust.report.dashboard import build_workspace, plain_plan, plan


def result(dataset: str, metric: str, **protocol: object) -> Result:
    return named(dataset, metric, 0.5, "fraction", 10, protocol)


def attacked(eps: float, threat: str = "white-box") -> Result:
    stem = "adversarial_accuracy" + ("" if threat == "white-box" else f"_{threat.replace('-', '_')}")
    attack = {"name": "PGD", "norm": "l2", "eps": eps}
    return result("imagenet", f"{stem}_l2_eps_{eps:g}", attack=attack, threat_model=threat)


RUN = RunResults(
    {"name": "cache"},
    {"module": "CacheModule"},
    [
        result("imagenet", "top1"),
        result("imagenet", "rms_calibration_error"),
        attacked(2.0),
        attacked(0.5),
        attacked(1.0, "gray-box"),
        result("imagenet-c", "mce"),
        result("imagenet-c", "ce_fog"),
        result("imagenet-c", "ce_snow"),
        result("imagenet-c", "top1_fog_3"),
        result("imagenet-o", "aupr", precision_recall=[[1.0, 0.5], [0.0, 1.0]]),
        result("imagenet-o", "aupr_memory_similarity"),
        result("cue-conflict", "shape_bias"),
        result("cue-conflict", "shape_bias_cat"),
        result("cue-conflict", "error_consistency_humans"),
        result("cue-conflict", "error_consistency_subject-01"),
        result("imagenet", "top1_theta_100"),
        result("imagenet", "top1_theta_20"),
        result("imagenet", "gray_box_top1_theta_20"),
        result("imagenet", "best_theta_top1"),
    ],
    [Example("imagenet", "adversarial", 7, {"clean": "a.png"}, {}, "adversarial_accuracy_l2")],
)


def panels(*runs: RunResults) -> dict[str, dict[str, tuple[str, ...]]]:
    return {section.name: {panel.title: panel.keys for panel in section.panels} for section in plan(runs)}


def test_every_measure_has_a_panel_and_one_section():
    found = panels(RUN)
    assert list(found) == ["score", "clean", "adversarial", "natural", "shape", "memory", "training"]
    assert {"score/clean", "score/adversarial"} <= set(plan([RUN])[0].panels[0].keys)
    bars = [key for s in plan([RUN])[1:] for p in s.panels if p.kind == "bars" for key in p.keys]
    assert sorted(bars) == sorted(r.key for r in RUN.results)


def test_measures_stand_where_one_looks_for_them():
    found = panels(RUN)
    assert found["clean"]["ImageNet: Top-1 accuracy"] == ("test/imagenet/top1",)
    # All eps of an attack in one panel, in their order.
    assert found["adversarial"]["ImageNet: Adversarial, L2"] == (
        "test/imagenet/adversarial_accuracy_l2_eps_0.5",
        "test/imagenet/adversarial_accuracy_l2_eps_2",
    )
    assert found["natural"]["ImageNet-C: corruption errors"] == ("test/imagenet-c/ce_fog", "test/imagenet-c/ce_snow")
    assert "Cue conflict: shape bias by category" in found["shape"]
    assert found["memory"]["ImageNet-O: AUPR, memory similarity"] == ("test/imagenet-o/aupr_memory_similarity",)
    assert "ImageNet: Adversarial, gray-box, L2" in found["memory"]
    assert found["shape"]["Cue conflict: error consistency"] == (
        "test/cue-conflict/error_consistency_humans",
        "test/cue-conflict/error_consistency_subject-01",
    )
    # Sorted by size, not by letters.
    assert found["memory"]["ImageNet: accuracy by theta"] == (
        "test/imagenet/top1_theta_20",
        "test/imagenet/top1_theta_100",
    )
    assert found["memory"]["ImageNet: accuracy by theta, gray-box"] == ("test/imagenet/gray_box_top1_theta_20",)
    assert found["memory"]["ImageNet: best theta"] == ("test/imagenet/best_theta_top1",)


def test_corruptions_of_any_name_are_natural():
    """Four accuracies and their set's images: the heat map, the table, and a panel a severity, none under clean."""
    metrics = ("top1_fog_1", "top1_snow_1", "top1_fog", "mean_accuracy_of_tested_cells", "rms_calibration_error")
    mine = [result("fog-and-snow", metric, cells=["fog/1", "snow/1"]) for metric in metrics]
    found = panels(RunResults({}, {"module": "StandardModule"}, mine))
    assert list(found) == ["score", "natural", "training"]
    assert found["natural"]["fog-and-snow: accuracy by corruption, severity 1"] == (
        "test/fog-and-snow/top1_fog_1",
        "test/fog-and-snow/top1_snow_1",
    )
    assert "fog-and-snow: accuracy by corruption and severity" in found["natural"]


def test_titles_tell_toy_sets_from_the_papers():
    """Only some values say how many classes there are; the panels of all of them have the toy set's title."""
    toy = RunResults(
        {},
        {"module": "CacheModule"},
        [
            result("imagenet", "top1", num_classes=8),
            result("imagenet", "top1_theta_20"),
            attacked(2.0),
            result("imagenet-o", "aupr", num_classes=8, precision_recall=[[1.0, 0.5]]),
            result("imagenet-c-like", "top1_fog_3", num_classes=8),
        ],
        [Example("imagenet", "adversarial", 7, {"clean": "a.png"}, {}, "adversarial_accuracy_l2")],
    )
    titles = [title for found in panels(toy).values() for title in found]
    told = [title for title in titles if title.lower().startswith("imagenet")]
    assert len(told) >= 12
    assert all(" of 8 classes: " in title for title in told), told


def test_curves_tables_and_images_stand_beside_their_measures():
    found = panels(RUN)
    curves = {panel.keys: (panel.across, panel.up) for s in plan([RUN]) for panel in s.panels if panel.kind == "curve"}
    assert curves == {
        ("test/imagenet-o/precision_recall_table",): ("recall", "precision"),
        ("test/imagenet/adversarial_accuracy_l2_by_eps_table",): ("eps", "accuracy"),
        ("test/imagenet/adversarial_accuracy_gray_box_l2_by_eps_table",): ("eps", "accuracy"),
    }
    assert found["adversarial"]["ImageNet: Adversarial, L2, against eps"][0] in {key for (key,) in curves}
    assert "ImageNet: Adversarial, gray-box, L2, against eps" in found["memory"]
    # Only of the attack that kept images, which another's name begins with.
    assert found["adversarial"]["ImageNet: Adversarial, L2, images"] == (
        "test/imagenet/adversarial_accuracy_l2_examples",
    )
    assert "ImageNet: Adversarial, gray-box, L2, images" not in found["memory"]
    kinds = {p.kind: p.keys for s in plan([RUN]) for p in s.panels if p.title.endswith("by corruption and severity")}
    assert kinds == {
        "images": ("test/imagenet-c/accuracy_by_cell_heat_map",),
        "table": ("test/imagenet-c/accuracy_by_cell",),
    }
    assert found["clean"]["ImageNet: images"] == ("test/imagenet/examples",)
    assert found["natural"]["ImageNet-O: images"] == ("test/imagenet-o/examples",)
    assert found["shape"]["Cue conflict: shape or texture"] == ("test/cue-conflict/shape_by_category",)
    assert found["shape"]["Cue conflict: images"] == ("test/cue-conflict/examples",)


def test_what_training_logs_has_a_panel():
    found = panels(RunResults({}, {"module": "AdvPropModule"}, [result("imagenet", "top1")]))
    assert {"train/loss", "train/auxiliary_loss", "train/divergence"} == set(found["training"]["Training loss"])
    # Building a memory trains nothing, and takes its time.
    assert list(panels(RUN)["training"]) == ["Images a second"]


@pytest.mark.parametrize(
    "scheme", ["StandardModule", "AdversarialModule", "AdvPropModule", "TradesModule", "AugMixModule"]
)
def test_no_module_logs_a_key_without_a_panel(scheme, toy, tmp_path):
    module = getattr(modules, scheme)(Network("lit_robust/resnet_tiny", num_classes=8))
    crops = TrainingCrop(crop="none", size=48), EvaluationCrop(resize=None, crop=None)
    data = ImageNetDataModule(toy, *crops, batch_size=8, eval_batch_size=8, num_workers=0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    watch = [LearningRateMonitor(), Throughput()]
    length = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1, "log_every_n_steps": 1}
    trainer = Trainer(accelerator="cpu", logger=CSVLogger(tmp_path), callbacks=watch, **length, **quiet)
    trainer.fit(module, data)
    logged = set(next(tmp_path.rglob("metrics.csv")).read_text("utf-8").splitlines()[0].split(","))
    found = panels(RunResults({}, {"module": scheme}, []))["training"].values()
    shown = {key for keys in found for key in keys}
    assert "train/images_per_second" in logged
    assert logged - shown == {"epoch", "step"}


def test_runs_without_memory_have_no_such_section():
    plain = RunResults({}, {"module": "StandardModule"}, [result("imagenet", "top1")])
    assert list(panels(plain)) == ["score", "clean", "training"]
    assert panels(plain, plain) == panels(plain)


@pytest.fixture
def package(monkeypatch):
    """A stand-in for wandb-workspaces whose objects remember what they were made of."""

    class Made(SimpleNamespace):
        url = "https://example.org/workspace"

        def save(self):
            saved.append(self)

    def maker(kind):
        return lambda *words, **settings: Made(kind=kind, words=words, **settings)

    saved: list[Made] = []
    top, workspaces = ModuleType("wandb_workspaces"), ModuleType("wandb_workspaces.workspaces")
    reports, v2 = ModuleType("wandb_workspaces.reports"), ModuleType("wandb_workspaces.reports.v2")
    for name in ("Workspace", "Section", "SectionLayoutSettings", "WorkspaceSettings"):
        setattr(workspaces, name, maker(name))
    for name in (
        "BarPlot",
        "LinePlot",
        "ScatterPlot",
        "MediaBrowser",
        "WeavePanelSummaryTable",
        "CustomChart",
        "Config",
        "SummaryMetric",
    ):
        setattr(v2, name, maker(name))
    for module in (top, workspaces, reports, v2):
        module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return saved


def test_the_workspace_is_the_plan(package):
    sections = plan([RUN])
    made = build_workspace(sections, "me", "robust", "Robustness")
    assert (made.entity, made.project, made.name) == ("me", "robust", "Robustness")
    assert [section.name for section in made.sections] == [section.name for section in sections]
    for mine, theirs in zip(sections, made.sections, strict=True):
        assert len(mine.panels) == len(theirs.panels)
        for panel, built in zip(mine.panels, theirs.panels, strict=True):
            if panel.kind == "bars":
                assert (built.kind, built.title, tuple(built.metrics)) == ("BarPlot", panel.title, panel.keys)
            if panel.kind == "points":
                assert built.x.words == (panel.across,)
                assert (built.y.words,) == (panel.keys,)
            if panel.kind == "curve":
                assert (built.kind, built.chart_name) == ("CustomChart", "wandb/line/v0")
                assert built.query == {"summaryTable": {"tableKey": panel.keys[0]}}
                assert built.chart_fields == {"x": panel.across, "y": panel.up}
    assert package == []  # building is not saving


def test_the_package_itself_takes_the_plan():
    """Where it is installed: what would be sent names every key, and nothing is sent."""
    pytest.importorskip("wandb_workspaces")
    sections = plan([RUN])
    sent = build_workspace(sections, "me", "robust", "Robustness")._to_model().model_dump_json()
    for panel in (panel for section in sections for panel in section.panels):
        assert all(key in sent for key in panel.keys), panel


def test_the_command_saves_once_and_prints_where(package, tmp_path, capsys):
    RUN.save(tmp_path / "run")
    dashboard([tmp_path / "run"], "me", "robust")
    assert capsys.readouterr().out == "https://example.org/workspace\n"
    assert len(package) == 1


def test_no_network_is_one_sentence(package, tmp_path, monkeypatch):
    def fail(self):
        raise ConnectionError("no route\nto host")

    made = type(build_workspace([], "me", "robust", "x"))
    monkeypatch.setattr(made, "save", fail)
    RUN.save(tmp_path / "run")
    with pytest.raises(UserError, match="cannot be reached .no route to host") as caught:
        dashboard([tmp_path / "run"], "me", "robust")
    assert "\n" not in str(caught.value)


def test_without_the_package_there_is_one_sentence_and_the_plan_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    RUN.save(tmp_path / "run")
    with pytest.raises(UserError, match="wandb-workspaces") as caught:
        dashboard([tmp_path / "run"], "me", "robust")
    assert "\n" not in str(caught.value)
    dashboard([tmp_path / "run"], "me", "robust", output=tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text("utf-8")) == plain_plan(plan([RUN]))


def test_an_empty_name_is_refused(tmp_path):
    RUN.save(tmp_path / "run")
    with pytest.raises(UserError, match="--entity"):
        dashboard([tmp_path / "run"], " ", "robust")


def test_the_tool_takes_its_options(tmp_path, capsys):
    RUN.save(tmp_path / "run")
    plan_file = tmp_path / "plan.json"
    main(["dashboard", str(tmp_path / "run"), "--entity", "me", "--project", "robust", "-o", str(plan_file)])
    assert capsys.readouterr().out == f"{plan_file}\n"
    assert json.loads(plan_file.read_text("utf-8"))[0]["section"] == "score"
