"""The W&B workspace of a project: which panels show which measures, and the workspace saved on the server."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, Literal

from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.core.results import Result, RunResults
from lit_robust.core.scorecard import main_strength, scores
from lit_robust.report.runs import load_runs
from lit_robust.report.titles import (
    dataset_title,
    is_attacked,
    metric_title,
    of_corruptions,
    order,
    series_title,
    threat_model,
)

SCORE, CLEAN, ADVERSARIAL, NATURAL = "score", "clean", "adversarial", "natural"
SHAPE, MEMORY, TRAINING = "shape", "memory", "training"
SECTIONS = (SCORE, CLEAN, ADVERSARIAL, NATURAL, SHAPE, MEMORY, TRAINING)
NATURAL_SETS = ("imagenet-a", "imagenet-o", "stylized-imagenet")  # next to those of corruptions
SHAPE_MEASURES = ("shape_bias", "decisions", "error_consistency", "accuracy_without_conflict")
BEST_THETA = "best_theta"
# Measures whose values share a panel, to its title.
PANELS = {
    BEST_THETA: "best theta",
    "error_consistency": "error consistency",
    "decisions": "decisions",
    **dict.fromkeys(("rms_calibration_error", "ece", "aurra"), "calibration"),
}
# What the modules and OverfittingMonitor log while a network trains; of two losses only some schemes have the second.
LEARNING = {
    "Training loss": ("train/loss", "train/auxiliary_loss", "train/divergence"),
    "Training accuracy": ("train/accuracy", "train/monitored_adversarial_accuracy"),
    "Validation accuracy": ("val/top1", "val/top5"),
    "Validation accuracy under attack": ("val/adversarial_top1",),
    "Images that the attack never moved": ("train/unmoved", "val/unmoved"),
    # LearningRateMonitor's; the second where norms and biases are a group of their own, at the same rate.
    "Learning rate": ("lr-SGD", "lr-SGD/pg1"),
}
# Of the building of a memory, too.
THROUGHPUT = {"Images a second": ("train/images_per_second",)}
MEMORY_MODULE = "CacheModule"
# Where the command line's configuration, which the run logs, holds the settings of a memory.
MEMORY_SETTINGS = {
    "theta": "model.init_args.retrieval.theta",
    "k": "model.init_args.retrieval.k",
}
Kind = Literal["bars", "lines", "points", "curve", "images", "table"]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: ``bars``, a bar a run and key; ``lines``, against the trainer's step; ``points``, a point a run;
            ``curve``, a line a run through the rows of a table; ``images``; ``table``.
        title: above it.
        keys: the loggers' keys, such as ``test/imagenet/top1``.
        across: of ``points``, the configuration entry along the horizontal axis; of a ``curve``, the table's column.
        up: of a ``curve``, the column along the vertical axis.
    """

    kind: Kind
    title: str
    keys: tuple[str, ...]
    across: str = ""
    up: str = ""


@dataclass(frozen=True)
class DashboardSection:
    """A group of panels under one heading."""

    name: str
    panels: tuple[Panel, ...]


def plan(runs: Sequence[RunResults]) -> list[DashboardSection]:
    """Return the sections of a workspace for runs like these, in order; a section without panels is left out.

    Measures of one kind share a panel: an attack's eps, the corruptions' errors, the categories' biases.

    Args:
        runs: results whose measures get panels; the workspace shows all runs of its project that have them.
    """
    results = sorted(_one_a_key(run.results for run in runs), key=order)
    panels: dict[str, list[Panel]] = {name: [] for name in SECTIONS}
    titles = _titles([result for run in runs for result in run.results])
    strength = main_strength([run.results for run in runs])
    if keys := {f"score/{name}": None for run in runs for name in scores(run.results, strength)}:
        panels[SCORE] += [Panel("bars", "Score card", tuple(keys)), Panel("table", "Score card", ("test/score_card",))]
    for (section, title), group in _grouped(results, titles).items():
        panels[section].append(Panel("bars", title, tuple(result.key for result in group)))
    for section, panel in [*_curves(results, titles), *_of_sets(results, titles), *_of_attacks(results, titles, runs)]:
        panels[section].append(panel)
    if doubted := [result for result in results if result.warnings]:
        panels[section_of(doubted[0])].append(Panel("table", "Warnings", ("test/warnings",)))
    modules = {str(run.model.get("module")) for run in runs}
    if MEMORY_MODULE in modules:
        panels[MEMORY] += _memory_panels(results, titles)
    lines = THROUGHPUT if modules == {MEMORY_MODULE} else LEARNING | THROUGHPUT
    panels[TRAINING] += [Panel("lines", title, keys) for title, keys in lines.items()]
    return [DashboardSection(name, tuple(found)) for name, found in panels.items() if found]


def _one_a_key(results: Iterable[Iterable[Result]]) -> list[Result]:
    return list({result.key: result for part in results for result in part}.values())


def _titles(results: Sequence[Result]) -> dict[str, str]:
    """Return each test set's title, which tells sets of other classes from the papers'."""
    return {name: dataset_title(name, results) for name in {result.dataset for result in results}}


def _grouped(results: Iterable[Result], titles: Mapping[str, str]) -> dict[tuple[str, str], list[Result]]:
    """Group measures that share a panel, by section and title."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((section_of(result), _panel_title(result, titles)), []).append(result)
    return groups


def section_of(result: Result) -> str:
    """Return the section a measure belongs to.

    Example:
        >>> section_of(Result("imagenet-c", "mce", 0.77, "fraction", 3_750_000, {}))
        'natural'
    """
    if is_attacked(result):
        return MEMORY if threat_model(result) in ("gray-box", "memory-surrogate") else ADVERSARIAL
    if result.facets.get("score") == "memory_similarity" or "theta" in result.facets or result.measure == BEST_THETA:
        return MEMORY
    if _is_natural(result):
        return NATURAL
    return SHAPE if result.measure in SHAPE_MEASURES else CLEAN


def _is_natural(result: Result) -> bool:
    return result.dataset in NATURAL_SETS or of_corruptions(result)


def _panel_title(result: Result, titles: Mapping[str, str]) -> str:
    facets, threat = result.facets, "" if threat_model(result) == "white-box" else f", {threat_model(result)}"
    if is_attacked(result):
        measure = series_title(result)
    elif "corruption" in facets:
        measure = "corruption errors" if result.measure == "ce" else "accuracy by corruption"
        measure += f", severity {facets['severity']}" if "severity" in facets else ""
    elif "theta" in facets:
        measure = f"accuracy by theta{threat}"
    elif "category" in facets:
        measure = "shape bias by category"
    elif result.measure in PANELS:
        measure = PANELS[result.measure]
    else:
        measure = metric_title(result)
    return f"{titles[result.dataset]}: {measure}"


def _full_title(result: Result, titles: Mapping[str, str]) -> str:
    return f"{titles[result.dataset]}: {metric_title(result)}"


def _curves(results: Iterable[Result], titles: Mapping[str, str]) -> list[tuple[str, Panel]]:
    """Return the precision-recall curves, whose points stand in their area's protocol."""
    return [
        (
            section_of(result),
            Panel(
                "curve",
                _full_title(result, titles).replace("AUPR", "precision against recall"),
                (f"test/{result.dataset}/precision_recall{_score_end(result)}_table",),
                "recall",
                "precision",
            ),
        )
        for result in results
        if result.protocol.get("precision_recall")
    ]


def _score_end(result: Result) -> str:
    """Return what tells a score's keys from those of the published one, which have none."""
    score = result.facets.get("score", "max_softmax")
    return "" if score == "max_softmax" else f"_{score}"


def _of_sets(results: Iterable[Result], titles: Mapping[str, str]) -> list[tuple[str, Panel]]:
    """Return what a test set has besides its measures: tables, a heat map, and images with the network's answers."""
    found = []
    sets: dict[str, list[Result]] = {}
    for result in results:
        sets.setdefault(result.dataset, []).append(result)
    for dataset, measures in sets.items():
        title, key = titles[dataset], f"test/{dataset}"
        has_bias = any(result.measure == "shape_bias" for result in measures)
        section = NATURAL if any(map(_is_natural, measures)) else SHAPE if has_bias else CLEAN
        if any("severity" in result.facets for result in measures):
            heat_map, table = f"{key}/accuracy_by_cell_heat_map", f"{key}/accuracy_by_cell"
            found.append((section, Panel("images", f"{title}: accuracy by corruption and severity", (heat_map,))))
            found.append((section, Panel("table", f"{title}: accuracy by corruption and severity", (table,))))
        if has_bias:
            found.append((section, Panel("table", f"{title}: decisions by category", (f"{key}/decisions",))))
            found.append((section, Panel("images", f"{title}: shape or texture", (f"{key}/shape_by_category",))))
        # Of a set whose images have categories only the evaluation of shape bias shows some.
        if any(result.measure != "error_consistency" for result in measures):
            found.append((section, Panel("images", f"{title}: images", (f"{key}/examples",))))
    return found


def _of_attacks(
    results: Iterable[Result], titles: Mapping[str, str], runs: Iterable[RunResults]
) -> list[tuple[str, Panel]]:
    """Return the curve of each attack, and where a run kept any, pairs of clean and attacked images."""
    illustrated = {(example.dataset, example.series) for run in runs for example in run.examples}
    found = []
    attacks = {(result.dataset, str(result.facets.get("series"))): result for result in filter(is_attacked, results)}
    for (dataset, series), result in attacks.items():
        section, title, key = section_of(result), f"{titles[dataset]}: {series_title(result)}", f"test/{dataset}"
        curve = Panel("curve", f"{title}, against eps", (f"{key}/{series}_by_eps_table",), "eps", "accuracy")
        found.append((section, curve))
        if (dataset, series) in illustrated:
            found.append((section, Panel("images", f"{title}, images", (f"{key}/{series}_examples",))))
    return found


def _memory_panels(results: Iterable[Result], titles: Mapping[str, str]) -> list[Panel]:
    """Return how accuracies go with the temperature and the breadth of retrieval; of each attack at its middle eps."""
    clean = [result for result in results if (result.dataset, result.metric) == ("imagenet", "top1")]
    attacked: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if is_attacked(result) and section_of(result) == MEMORY:
            attacked.setdefault((result.dataset, str(result.facets.get("series"))), []).append(result)
    wanted = [*clean, *(group[len(group) // 2] for group in attacked.values())]
    return [
        Panel("points", f"{_full_title(result, titles)}, by {name}", (result.key,), across)
        for result in wanted
        for name, across in MEMORY_SETTINGS.items()
    ]


def plain_plan(sections: Iterable[DashboardSection]) -> list[dict[str, Any]]:
    """Return a plan as lists and mappings, as ``lit-robust dashboard --output`` writes it."""
    return [{"section": section.name, "panels": [_plain(panel) for panel in section.panels]} for section in sections]


def _plain(panel: Panel) -> dict[str, Any]:
    settings = {**asdict(panel), "keys": list(panel.keys)}
    return {name: value for name, value in settings.items() if value}


PACKAGE = "wandb_workspaces"
LINE_CHART = "wandb/line/v0"  # what wandb.plot.line draws with
COLUMNS = 3  # of panels
MOST_RUNS = 30  # in a panel; the app's own limit is 10


def dashboard(
    runs: list[Path], entity: str, project: str, name: str = "Robustness", output: Path | None = None
) -> None:
    """Build a workspace with panels for the runs' measures, save it to W&B, and print its address.

    Sections are clean, adversarial, natural, shape, memory and training; each shows all runs of the project that
    logged the measure, values as fractions from 0 to 1. Needs the package wandb-workspaces and a W&B login; with an
    output, neither, nor a network.

    Args:
        runs: run folders that ``lit-robust test`` wrote into, or results files; their measures get panels.
        entity: user or team that the project belongs to.
        project: the W&B project that the runs were logged to.
        name: of the workspace.
        output: a JSON file to write the plan of the panels into, instead of saving a workspace.

    Raises:
        UserError: a run cannot be read, a name is empty, the package is missing, or W&B cannot be reached.
    """
    for option, value in (("entity", entity), ("project", project), ("name", name)):
        if not value.strip():
            raise UserError(f"The {option} of the dashboard is empty: give W&B's name of it by --{option}.")
    sections = plan([run.found for run in load_runs(runs)])
    if output is not None:
        write_text(output, json.dumps(plain_plan(sections), indent=1, ensure_ascii=False) + "\n")
        print(output)
        return
    workspace = build_workspace(sections, entity, project, name)
    try:
        workspace.save()
    except OSError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"W&B cannot be reached ({reason}): check the network, or write the plan of the panels by --output."
        ) from error
    print(workspace.url)


def build_workspace(sections: Iterable[DashboardSection], entity: str, project: str, name: str) -> Any:
    """Return a workspace of the package wandb-workspaces, which has not been saved; needs no network.

    Args:
        sections: what it shows, such as from ``plan``.
        entity: user or team that the project belongs to.
        project: the W&B project.
        name: of the workspace.

    Raises:
        UserError: the package is missing.
    """
    if find_spec(PACKAGE) is None:
        raise UserError(
            "The dashboard needs the package wandb-workspaces, which is not here: install it, such as by "
            "`uv pip install wandb-workspaces`, or write the plan of the panels alone by --output dashboard.json."
        )
    workspaces = import_module(f"{PACKAGE}.workspaces")
    reports = import_module(f"{PACKAGE}.reports.v2")
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(
                name=section.name,
                panels=[_panel(reports, panel) for panel in section.panels],
                is_open=True,
                # Sections flow in pages; rows for all panels keep a whole section on one.
                layout_settings=workspaces.SectionLayoutSettings(
                    columns=COLUMNS, rows=ceil(len(section.panels) / COLUMNS)
                ),
            )
            for section in sections
        ],
        settings=workspaces.WorkspaceSettings(max_runs=MOST_RUNS),
    )


def _panel(reports: Any, panel: Panel) -> Any:
    """Return a panel as an object of wandb-workspaces' ``reports.v2``, where all kinds of panels are."""
    keys = list(panel.keys)
    if panel.kind == "lines":
        return reports.LinePlot(title=panel.title, x="trainer/global_step", y=keys, max_runs_to_show=MOST_RUNS)
    if panel.kind == "points":
        across, up = reports.Config(panel.across), reports.SummaryMetric(keys[0])
        return reports.ScatterPlot(title=panel.title, x=across, y=up)
    if panel.kind == "curve":
        fields, words = {"x": panel.across, "y": panel.up}, {"title": panel.title}
        query = {"summaryTable": {"tableKey": keys[0]}}
        return reports.CustomChart(query=query, chart_name=LINE_CHART, chart_fields=fields, chart_strings=words)
    if panel.kind == "images":
        return reports.MediaBrowser(title=panel.title, media_keys=keys, num_columns=4)
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=keys[0])
    bars = len(keys) * MOST_RUNS
    return reports.BarPlot(title=panel.title, metrics=keys, max_runs_to_show=MOST_RUNS, max_bars_to_show=bars)
