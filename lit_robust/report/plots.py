"""Accuracy against eps, and shape bias by category."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_robust.report.protocol import attack_settings, plain
from lit_robust.report.runs import is_partial
from lit_robust.report.svg import INK, PAPER, RULE, new_figure, plot_settings, run_style, to_svg
from lit_robust.report.titles import NORMS, category, dataset_title, sweep, value_text
from lit_robust.results import Result, RunResults

WIDTH = 480.0
OVERALL = "all"


@dataclass(frozen=True)
class Plot:
    """A plot with what must be said of it.

    Attributes:
        title: what it shows.
        caption: how it was measured and how to read it.
        svg: the plot, an ``svg`` element.
        labels: label of each run in it, to what a legend adds after the name.
    """

    title: str
    caption: str
    svg: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Point:
    """One value of a curve: eps in [0, 1] pixel units, accuracy as a fraction, and whether it is partial."""

    eps: float
    accuracy: float
    partial: bool


@dataclass(frozen=True)
class Curves:
    """Accuracies of one test set under one attack.

    Attributes:
        dataset: the test loader's name.
        norm: the attack's, ``l2`` or ``linf``; empty if nobody says.
        attack: the attack's settings in words.
        lines: a run's label to its points, by eps.
    """

    dataset: str
    norm: str
    attack: str
    lines: Mapping[str, list[Point]]


def curves(runs: Mapping[str, RunResults]) -> list[Curves]:
    """Sort adversarial accuracies into plots: one for each test set, norm and attack.

    Values of different attacks do not share axes, however alike their names. A run's clean accuracy stands at eps 0.
    """
    plots: dict[tuple[str, str, str], dict[str, list[Point]]] = {}
    attacks: dict[tuple[str, str, str], str] = {}
    for label, found in runs.items():
        for result in found.results:
            place = sweep(result)
            if place is None or not math.isfinite(result.value):
                continue
            settings = attack_settings(result)
            key = (result.dataset, place.norm, json.dumps(settings, sort_keys=True, default=str))
            attacks[key] = _attack_words(settings)
            line = plots.setdefault(key, {}).setdefault(label, _clean(found, result.dataset))
            line.append(Point(place.eps, result.value, is_partial(result)))
    for lines in plots.values():
        for line in lines.values():
            line.sort(key=lambda point: point.eps)
    return [Curves(key[0], key[1], attacks[key], lines) for key, lines in plots.items()]


def _clean(found: RunResults, dataset: str) -> list[Point]:
    return [
        Point(0.0, result.value, is_partial(result))
        for result in found.results
        if (result.dataset, result.metric) == (dataset, "top1") and math.isfinite(result.value)
    ]


def _attack_words(settings: Mapping[str, object]) -> str:
    if not settings:
        return "the attack's settings are not stated"
    words = [str(settings.get("name", "attack"))]
    told = {"name", "norm"}
    if {"steps", "step_size_over_eps"} <= settings.keys():
        words.append(f"{settings['steps']} steps of {plain(settings['step_size_over_eps'])} eps")
        told |= {"steps", "step_size_over_eps"}
    words += [f"{key.replace('_', ' ')} {plain(value)}" for key, value in settings.items() if key not in told]
    return ", ".join(words)


def accuracy_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw accuracy against eps, a line a run; one plot for each test set, norm and attack.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    return [_accuracy_plot(curve, list(runs), f"accuracy-{number}") for number, curve in enumerate(curves(runs))]


def _accuracy_plot(curve: Curves, labels: list[str], name: str) -> Plot:
    scale = 255 if curve.norm == "linf" else 1
    norm = NORMS.get(curve.norm, "")
    title = f"{dataset_title(curve.dataset)}: accuracy under attack{f', {norm}' if norm else ''}"
    with plot_settings():
        figure = new_figure(WIDTH, 340)
        axes = figure.add_subplot()
        for label, line in curve.lines.items():
            colour, marker, dashes = run_style(labels.index(label))
            eps, accuracy = [point.eps * scale for point in line], [100 * point.accuracy for point in line]
            axes.plot(eps, accuracy, dashes, color=colour, clip_on=False, zorder=3)
            for x, y, point in zip(eps, accuracy, line, strict=True):
                face = PAPER if point.partial else colour
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, clip_on=False, zorder=4)
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{norm} eps{', in 1/255' if scale == 255 else ''}".strip())
        axes.set_title("accuracy, %", loc="left", fontsize=12)
        axes.grid(axis="y")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=8)
        words = [f"{label}: {_line_words(line, scale)}" for label, line in curve.lines.items()]
        svg = to_svg(figure, name, title, "; ".join(words))
    caption = f"Clean accuracy at eps 0. Attack: {curve.attack}."
    if any(point.partial for line in curve.lines.values() for point in line):
        caption += " Hollow marks are partial."
    return Plot(title, caption, svg, dict.fromkeys(curve.lines, ""))


def _line_words(line: list[Point], scale: int) -> str:
    return ", ".join(f"{100 * point.accuracy:.1f} % at eps {point.eps * scale:.4g}" for point in line)


def biases(found: RunResults, dataset: str) -> dict[str, Result]:
    """Return a run's shape biases on a test set: category, or ``all``, to its result."""
    own = [result for result in found.results if result.dataset == dataset]
    overall = [(OVERALL, result) for result in own if result.metric == "shape_bias"]
    return dict(overall + [(name, result) for result in own if (name := category(result)) is not None])


def shape_bias_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw shape bias by category in the manner of Geirhos et al. 2019, figure 4; one plot a test set.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    sets = dict.fromkeys(r.dataset for found in runs.values() for r in found.results if r.metric == "shape_bias")
    return [_shape_bias_plot(runs, dataset, f"bias-{number}") for number, dataset in enumerate(sets)]


def _shape_bias_plot(runs: Mapping[str, RunResults], dataset: str, name: str) -> Plot:
    found = {label: values for label, run in runs.items() if OVERALL in (values := biases(run, dataset))}
    rows = list(dict.fromkeys([OVERALL, *(row for values in found.values() for row in values)]))
    labels = list(runs)
    height = 1.0 if len(found) < 5 else 1.35
    title = f"{dataset_title(dataset)}: shape or texture, by category"
    with plot_settings():
        figure = new_figure(WIDTH, 95 + 24 * height * len(rows))
        axes = figure.add_subplot()
        for number, (label, values) in enumerate(found.items()):
            colour, marker, dashes = run_style(labels.index(label))
            # Equal values would hide each other: runs stand a little apart inside a row.
            shift = 0.5 * (number - (len(found) - 1) / 2) / max(len(found) - 1, 2)
            if math.isfinite(values[OVERALL].value):
                axes.axvline(1 - values[OVERALL].value, color=colour, linestyle=dashes, linewidth=1.3, zorder=2)
            for place, row in enumerate(rows):
                if row in values and math.isfinite(values[row].value):
                    face, edge = (PAPER, colour) if is_partial(values[row]) else (colour, PAPER)
                    x, y = 1 - values[row].value, place + shift
                    axes.plot(x, y, marker, color=face, markeredgecolor=edge, markersize=9, clip_on=False, zorder=4)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), rows)
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.hlines([place + 0.5 for place in range(len(rows) - 1)], 0, 1, color=RULE, linewidth=0.8, zorder=1)
        axes.axhline(0.5, color=INK, linewidth=0.8, zorder=1)
        axes.set_xlabel("fraction of texture decisions")
        above = axes.secondary_xaxis("top", functions=(_mirrored, _mirrored))
        above.set_xlabel("fraction of shape decisions", labelpad=6)
        for side in (axes, above):
            side.tick_params(length=0, pad=6)
            side.spines[:].set_visible(False)
        svg = to_svg(figure, name, title, "; ".join(_bias_words(label, values) for label, values in found.items()))
    shares = {label: f"{_percent(values[OVERALL])} shape" for label, values in found.items()}
    return Plot(title, _bias_caption(found), svg, shares)


def _mirrored(fraction: Any) -> Any:
    return 1 - fraction


def _bias_caption(found: Mapping[str, Mapping[str, Result]]) -> str:
    values = [result for values in found.values() for result in values.values()]
    caption = (
        "Of the decisions for an image's shape or its texture, the fraction for each; other decisions do not count. "
        "A mark is a run's bias in one category of shapes, a line its bias over all images."
    )
    if any(not math.isfinite(result.value) for result in values):
        caption += " A mark is missing where a run chose neither shape nor texture."
    if any(is_partial(result) for result in values):
        caption += " Hollow marks are partial."
    return caption


def _bias_words(label: str, values: Mapping[str, Result]) -> str:
    return f"{label}: {', '.join(f'{row} {_percent(result)} shape' for row, result in values.items())}"


def _percent(result: Result) -> str:
    words = value_text(result.value, result.unit)
    return f"{words} %" if math.isfinite(result.value) else words
