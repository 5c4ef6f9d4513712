"""Which panels a W&B workspace shows of which measures, as plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_robust.report.titles import CORRUPTED_SETS, corrupted, dataset_title, metric_title, order, sweep
from lit_robust.results import Example, Result, RunResults

CLEAN, ADVERSARIAL, NATURAL, SHAPE, MEMORY = "clean", "adversarial", "natural", "shape", "memory"
SECTIONS = (CLEAN, ADVERSARIAL, NATURAL, SHAPE, MEMORY)
NATURAL_SETS = (*CORRUPTED_SETS, "imagenet-a", "imagenet-o", "stylized-imagenet")
CALIBRATION = ("rms_calibration_error", "ece", "aurra")
# What the modules log while they train and validate.
TRAINING = ("train/loss", "train/accuracy", "val/top1", "val/top5")
ROBUST_TRAINING = ("val/adversarial_top1",)
MEMORY_MODULE = "CacheModule"
# Where the command line's configuration, which the run logs, holds the settings of a memory.
MEMORY_SETTINGS = {
    "theta": "model.init_args.retrieval.theta",
    "k": "model.init_args.retrieval.k",
}
Kind = Literal["bars", "lines", "points", "images", "table"]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: ``bars``, a bar a run and key; ``lines``, against the trainer's step; ``points``, a point a run;
            ``images``; ``table``.
        title: above it.
        keys: the loggers' keys, such as ``test/imagenet/top1``.
        across: of ``points``, the configuration entry along the horizontal axis.
    """

    kind: Kind
    title: str
    keys: tuple[str, ...]
    across: str = ""


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
    results = sorted(_one_a_key(run.results for run in runs), key=order)
    examples = [example for run in runs for example in run.examples]
    panels: dict[str, list[Panel]] = {name: [] for name in SECTIONS}
    panels[CLEAN] += [Panel("lines", _line_title(key), (key,)) for key in TRAINING]
    panels[ADVERSARIAL] += [Panel("lines", _line_title(key), (key,)) for key in ROBUST_TRAINING]
    for (section, title), group in _grouped(results).items():
        panels[section].append(Panel("bars", title, tuple(result.key for result in group)))
    for key in dict.fromkeys(map(_example_key, examples)):
        section = SHAPE if key.endswith("/examples") else ADVERSARIAL
        panels[section].append(Panel("images", f"{key.split('/')[1]}: images", (key,)))
    for dataset in dict.fromkeys(result.dataset for result in results if result.metric == "shape_bias"):
        key = f"test/{dataset}/decisions"
        panels[SHAPE].append(Panel("table", f"{dataset_title(dataset)}: decisions by category", (key,)))
    if any(run.model.get("module") == MEMORY_MODULE for run in runs):
        panels[MEMORY] += _memory_panels(results)
    return [Section(name, tuple(found)) for name, found in panels.items() if found]


def _one_a_key(results: Iterable[Iterable[Result]]) -> list[Result]:
    return list({result.key: result for part in results for result in part}.values())


def _grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Group measures that share a panel, by section and title."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((section_of(result), _panel_title(result)), []).append(result)
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
    if result.metric.endswith("_memory_similarity"):
        return MEMORY
    if result.dataset in NATURAL_SETS:
        return NATURAL
    if result.metric.startswith(("shape_", "texture_", "other_", "error_consistency_", "accuracy_without_conflict")):
        return SHAPE
    return CLEAN


def _panel_title(result: Result) -> str:
    dataset = dataset_title(result.dataset)
    place, cell = sweep(result), corrupted(result)
    if place is not None:
        return f"{dataset}: {metric_title(result).rsplit(', eps ', 1)[0]}"
    if cell is not None:
        measure = "corruption errors" if cell.kind == "ce" else "accuracy by corruption"
        return f"{dataset}: {measure}{f', severity {cell.severity}' if cell.severity else ''}"
    if result.metric.startswith("shape_bias_"):
        return f"{dataset}: shape bias by category"
    if result.metric.endswith("_decisions"):
        return f"{dataset}: decisions"
    if result.metric.startswith(CALIBRATION):
        return f"{dataset}: calibration"
    return f"{dataset}: {metric_title(result)}"


def _line_title(key: str) -> str:
    return key.replace("/", ": ").replace("_", " ")


def _example_key(example: Example) -> str:
    """Return the key under which a run logged an example's image; the file's name holds the attack's."""
    if example.kind != "adversarial":
        return f"test/{example.dataset}/examples"
    file = next(iter(example.images.values())).rsplit("/", 1)[-1]
    stem = file.removeprefix(f"{example.dataset}-").rsplit(f"-{example.index}-", 1)[0]
    return f"test/{example.dataset}/{stem}_examples"


def _memory_panels(results: Iterable[Result]) -> list[Panel]:
    """Return how accuracies go with the sharpness and the breadth of retrieval; of each attack at its middle eps."""
    clean = [result for result in results if (result.dataset, result.metric) == ("imagenet", "top1")]
    attacked: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if (place := sweep(result)) is not None and section_of(result) == MEMORY:
            attacked.setdefault((result.dataset, place.stem), []).append(result)
    wanted = [*clean, *(group[len(group) // 2] for group in attacked.values())]
    return [
        Panel("points", f"{_full_title(result)}, by {name}", (result.key,), across)
        for result in wanted
        for name, across in MEMORY_SETTINGS.items()
    ]


def _full_title(result: Result) -> str:
    return f"{dataset_title(result.dataset)}: {metric_title(result)}"


def plain_plan(sections: Iterable[Section]) -> list[dict[str, Any]]:
    """Return a plan as lists and mappings, as ``lit-robust dashboard --output`` writes it."""
    return [
        {
            "section": section.name,
            "panels": [
                {"kind": p.kind, "title": p.title, "keys": list(p.keys), **({"across": p.across} if p.across else {})}
                for p in section.panels
            ],
        }
        for section in sections
    ]
