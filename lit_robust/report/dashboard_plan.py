"""Which panels a W&B workspace shows of which measures, as plain data."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lit_robust.core.results import Result, RunResults
from lit_robust.report.titles import corrupted, dataset_title, metric_title, of_corruptions, order, sweep

CLEAN, ADVERSARIAL, NATURAL, SHAPE, MEMORY, TRAINING = "clean", "adversarial", "natural", "shape", "memory", "training"
SECTIONS = (CLEAN, ADVERSARIAL, NATURAL, SHAPE, MEMORY, TRAINING)
NATURAL_SETS = ("imagenet-a", "imagenet-o", "stylized-imagenet")  # beside those of corruptions
CALIBRATION = ("rms_calibration_error", "ece", "aurra")
SHAPE_METRICS = ("shape_", "texture_", "other_", "error_consistency_", "accuracy_without_conflict")
# What the modules and OverfittingMonitor log while a network trains; of two losses only some schemes have the second.
LEARNING = {
    "Training loss": ("train/loss", "train/auxiliary_loss", "train/divergence"),
    "Training accuracy": ("train/accuracy", "train/monitored_adversarial_accuracy"),
    "Validation accuracy": ("val/top1", "val/top5"),
    "Validation accuracy under attack": ("val/adversarial_top1",),
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
class Section:
    """A group of panels under one heading."""

    name: str
    panels: tuple[Panel, ...]


def plan(runs: Sequence[RunResults]) -> list[Section]:
    """Return the sections of a workspace for runs like these, in order; a section without panels is left out.

    Measures of one kind share a panel: an attack's eps, the corruptions' errors, the categories' biases.

    Args:
        runs: results whose measures get panels; the workspace shows all runs of its project that have them.
    """
    results = sorted(_one_a_key(run.results for run in runs), key=_order)
    panels: dict[str, list[Panel]] = {name: [] for name in SECTIONS}
    titles = _titles([result for run in runs for result in run.results])
    for (section, title), group in _grouped(results, titles).items():
        panels[section].append(Panel("bars", title, tuple(result.key for result in group)))
    for section, panel in [*_curves(results, titles), *_of_sets(results, titles), *_of_attacks(results, titles, runs)]:
        panels[section].append(panel)
    if doubted := [result for result in results if result.warnings]:
        panels[section_of(doubted[0])].append(Panel("table", "Warnings", ("test/warnings",)))
    modules = {run.model.get("module") for run in runs}
    if MEMORY_MODULE in modules:
        panels[MEMORY] += _memory_panels(results, titles)
    lines = THROUGHPUT if modules == {MEMORY_MODULE} else LEARNING | THROUGHPUT
    panels[TRAINING] += [Panel("lines", title, keys) for title, keys in lines.items()]
    return [Section(name, tuple(found)) for name, found in panels.items() if found]


def _one_a_key(results: Iterable[Iterable[Result]]) -> list[Result]:
    return list({result.key: result for part in results for result in part}.values())


def _titles(results: Sequence[Result]) -> dict[str, str]:
    """Return each test set's title, which tells sets of other classes from the papers'."""
    return {name: dataset_title(name, results) for name in {result.dataset for result in results}}


def _order(result: Result) -> tuple[Any, ...]:
    """Return the order of a report's columns, thetas by their size."""
    theta = _theta(result)
    return order(result) if theta is None else (*order(result)[:4], theta[0], theta[1])


def _theta(result: Result) -> tuple[str, float] | None:
    """Return the stem and the theta of an accuracy that ``ThetaSearch`` found; None for other metrics."""
    matched = re.fullmatch(r"(top1|gray_box_top1)_theta_([\d.e+-]+)", result.metric)
    return (matched[1], float(matched[2])) if matched else None


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
    place = sweep(result)
    if place is not None:
        return MEMORY if place.threat in ("gray-box", "memory-surrogate") else ADVERSARIAL
    if result.metric.endswith("_memory_similarity") or _theta(result) or result.metric.startswith("best_theta_"):
        return MEMORY
    if _is_natural(result):
        return NATURAL
    return SHAPE if result.metric.startswith(SHAPE_METRICS) else CLEAN


def _is_natural(result: Result) -> bool:
    return result.dataset in NATURAL_SETS or of_corruptions(result)


def _panel_title(result: Result, titles: Mapping[str, str]) -> str:
    dataset = titles[result.dataset]
    place, cell, theta = sweep(result), corrupted(result), _theta(result)
    if place is not None:
        return f"{dataset}: {_attack_title(result)}"
    if cell is not None:
        measure = "corruption errors" if cell.kind == "ce" else "accuracy by corruption"
        return f"{dataset}: {measure}{f', severity {cell.severity}' if cell.severity else ''}"
    if theta is not None:
        return f"{dataset}: accuracy by theta{', gray-box' if theta[0].startswith('gray_box') else ''}"
    for start, measure in (
        ("best_theta_", "best theta"),
        ("shape_bias_", "shape bias by category"),
        ("error_consistency_", "error consistency"),
    ):
        if result.metric.startswith(start):
            return f"{dataset}: {measure}"
    if result.metric.endswith("_decisions"):
        return f"{dataset}: decisions"
    if result.metric.startswith(CALIBRATION):
        return f"{dataset}: calibration"
    return _full_title(result, titles)


def _attack_title(result: Result) -> str:
    return metric_title(result).rsplit(", eps ", 1)[0]


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
                (f"{result.key.replace('aupr', 'precision_recall')}_table",),
                "recall",
                "precision",
            ),
        )
        for result in results
        if result.protocol.get("precision_recall")
    ]


def _of_sets(results: Iterable[Result], titles: Mapping[str, str]) -> list[tuple[str, Panel]]:
    """Return what a test set has beside its measures: tables, a heat map, and images with the network's answers."""
    found = []
    sets: dict[str, list[Result]] = {}
    for result in results:
        sets.setdefault(result.dataset, []).append(result)
    for dataset, measures in sets.items():
        title, key = titles[dataset], f"test/{dataset}"
        has_bias = any(result.metric == "shape_bias" for result in measures)
        section = NATURAL if any(map(_is_natural, measures)) else SHAPE if has_bias else CLEAN
        if any((cell := corrupted(result)) and cell.severity for result in measures):
            heat_map, table = f"{key}/accuracy_by_cell_heat_map", f"{key}/accuracy_by_cell"
            found.append((section, Panel("images", f"{title}: accuracy by corruption and severity", (heat_map,))))
            found.append((section, Panel("table", f"{title}: accuracy by corruption and severity", (table,))))
        if has_bias:
            found.append((section, Panel("table", f"{title}: decisions by category", (f"{key}/decisions",))))
            found.append((section, Panel("images", f"{title}: shape or texture", (f"{key}/shape_by_category",))))
        # Of a set whose images have categories only the evaluation of shape bias shows some.
        if any(not result.metric.startswith("error_consistency_") for result in measures):
            found.append((section, Panel("images", f"{title}: images", (f"{key}/examples",))))
    return found


def _of_attacks(
    results: Iterable[Result], titles: Mapping[str, str], runs: Iterable[RunResults]
) -> list[tuple[str, Panel]]:
    """Return the curve of each attack, and where a run kept any, pairs of clean and attacked images."""
    files = [file for run in runs for example in run.examples for file in example.images.values()]
    found = []
    attacks = {(result.dataset, place.stem): result for result in results if (place := sweep(result)) is not None}
    for (dataset, stem), result in attacks.items():
        section, title, key = section_of(result), f"{titles[dataset]}: {_attack_title(result)}", f"test/{dataset}"
        curve = Panel("curve", f"{title}, against eps", (f"{key}/{stem}_by_eps_table",), "eps", "accuracy")
        found.append((section, curve))
        kept = re.compile(rf"(.*/)?{re.escape(f'{dataset}-{stem}')}-\d+-\w+\.png")
        if any(kept.fullmatch(file) for file in files):
            found.append((section, Panel("images", f"{title}, images", (f"{key}/{stem}_examples",))))
    return found


def _memory_panels(results: Iterable[Result], titles: Mapping[str, str]) -> list[Panel]:
    """Return how accuracies go with the sharpness and the breadth of retrieval; of each attack at its middle eps."""
    clean = [result for result in results if (result.dataset, result.metric) == ("imagenet", "top1")]
    attacked: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if (place := sweep(result)) is not None and section_of(result) == MEMORY:
            attacked.setdefault((result.dataset, place.stem), []).append(result)
    wanted = [*clean, *(group[len(group) // 2] for group in attacked.values())]
    return [
        Panel("points", f"{_full_title(result, titles)}, by {name}", (result.key,), across)
        for result in wanted
        for name, across in MEMORY_SETTINGS.items()
    ]


def plain_plan(sections: Iterable[Section]) -> list[dict[str, Any]]:
    """Return a plan as lists and mappings, as ``lit-robust dashboard --output`` writes it."""
    return [{"section": section.name, "panels": [_plain(panel) for panel in section.panels]} for section in sections]


def _plain(panel: Panel) -> dict[str, Any]:
    settings = {**asdict(panel), "keys": list(panel.keys)}
    return {name: value for name, value in settings.items() if value}
