"""Accuracy against eps, a panel for each threat model, norm and attack."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lit_robust.core.results import Result, RunResults
from lit_robust.report.grouping import ends_of, ends_words
from lit_robust.report.plots.drawing import HOLLOW, PAPER, WIDTH, Plot, new_figure, plot_settings, run_style, to_svg
from lit_robust.report.protocol import attack_settings, is_partial, is_published, plain, points_of_difference
from lit_robust.report.titles import NORM_TITLES, dataset_title, is_attacked, threat_model


@dataclass(frozen=True)
class Point:
    """One value of a curve: eps in [0, 1] pixel units, and the accuracy there."""

    eps: float
    result: Result

    @property
    def accuracy(self) -> float:
        """As a fraction."""
        return self.result.value

    @property
    def partial(self) -> bool:
        """Whether it is of a part of the set."""
        return is_partial(self.result)


@dataclass(frozen=True)
class Curves:
    """Accuracies of one test set under one attack.

    Attributes:
        dataset: title of the test set.
        norm: the attack's, ``l2`` or ``linf``; empty if nobody says.
        threat: what the attack sees, such as ``white-box``.
        attack: the attack's settings in words.
        lines: a run's label to its points, by eps.
        marks: a published network's label to its points, by eps, which no line joins.
        remarks: a published network's label to what its protocol does otherwise.
    """

    dataset: str
    norm: str
    threat: str
    attack: str
    lines: dict[str, list[Point]] = field(default_factory=dict)
    marks: dict[str, list[Point]] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


def curves(runs: Mapping[str, RunResults]) -> list[Curves]:
    """Sort adversarial accuracies into plots: one for each test set, threat model, norm and attack.

    Values measured under different attacks do not share axes, however alike their names. Published ones stand next to
    those measured under an attack of that name, with what is different said in the legend. A run's clean accuracy
    stands at eps 0.
    """
    panels: dict[tuple[str, str, str, str], Curves] = {}
    references: dict[tuple[str, str, str, str], Result] = {}
    for label, found in runs.items():
        for result in _attacked(found):
            if is_published(result):
                continue
            settings = attack_settings(result)
            title = dataset_title(result.dataset, [result])
            norm, threat = result.facets.get("norm", ""), threat_model(result)
            key = (title, threat, norm, json.dumps(settings, sort_keys=True, default=str))
            panel = panels.setdefault(key, Curves(title, norm, threat, _attack_words(settings)))
            references.setdefault(key, result)
            line = panel.lines.setdefault(label, _clean(found, result))
            line.append(Point(result.facets["eps"], result))
    for key, panel in panels.items():
        for label, found in runs.items():
            _add_published(panel, references[key], label, found)
        for line in (*panel.lines.values(), *panel.marks.values()):
            line.sort(key=lambda point: point.eps)
    return list(panels.values())


def _attacked(found: RunResults) -> list[Result]:
    return [result for result in found.results if is_attacked(result) and math.isfinite(result.value)]


def _add_published(panel: Curves, reference: Result, label: str, found: RunResults) -> None:
    attack = attack_settings(reference).get("name")
    results = [
        result
        for result in _attacked(found)
        if is_published(result)
        and (dataset_title(result.dataset, [result]), threat_model(result), result.facets.get("norm", ""))
        == (panel.dataset, panel.threat, panel.norm)
        and attack_settings(result).get("name") == attack
    ]
    if not results:
        return
    panel.marks[label] = [*_clean(found, results[0]), *(Point(result.facets["eps"], result) for result in results)]
    points = (point for result in results for point in points_of_difference(result, reference))
    panel.remarks[label] = "; ".join(
        ["published", *dict.fromkeys(point for point in points if not point.startswith("attack eps "))]
    )


def _clean(found: RunResults, attacked: Result) -> list[Point]:
    return [
        Point(0.0, result)
        for result in found.results
        if (result.dataset, result.metric) == (attacked.dataset, "top1") and math.isfinite(result.value)
    ]


def _attack_words(settings: Mapping[str, object]) -> str:
    if not settings:
        return "the attack's settings are not stated"
    words = [str(settings.get("name", "attack"))]
    titled = {"name", "norm"}
    if {"steps", "step_size_over_eps"} <= settings.keys():
        words.append(f"{settings['steps']} steps of {settings['step_size_over_eps']:.3g} eps")
        titled |= {"steps", "step_size_over_eps"}
    words += [f"{key.replace('_', ' ')} {plain(value)}" for key, value in settings.items() if key not in titled]
    return ", ".join(words)


def accuracy_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw accuracy against eps, a line a run; one plot for each test set, threat model, norm and attack.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    trained = {label: strength for label, found in runs.items() if (strength := training_strength(found))}
    return [
        _accuracy_plot(curve, list(runs), trained, f"accuracy-{number}") for number, curve in enumerate(curves(runs))
    ]


def training_strength(found: RunResults) -> tuple[str, float] | None:
    """Return norm and eps of the attack that a network was trained by, as its module tells; None without one."""
    settings = found.model.get("settings")
    attack = settings.get("attack") if isinstance(settings, Mapping) else None
    attack = attack.get("init_args", attack) if isinstance(attack, Mapping) else None
    if not isinstance(attack, Mapping) or not isinstance(attack.get("eps"), int | float):
        return None
    return str(attack.get("norm")), float(attack["eps"])


def _accuracy_plot(curve: Curves, labels: list[str], trained: Mapping[str, tuple[str, float]], name: str) -> Plot:
    scale = 255 if curve.norm == "linf" else 1
    norm = NORM_TITLES.get(curve.norm, "")
    title = ", ".join(filter(None, [f"Accuracy under {curve.threat} attack", norm]))
    marked = {label: trained[label][1] for label in curve.lines if label in trained and trained[label][0] == curve.norm}
    shown = {**curve.lines, **curve.marks}
    with plot_settings():
        figure = new_figure(WIDTH, 340)
        axes = figure.add_subplot()
        for label, line in shown.items():
            colour, marker, dashes = run_style(labels.index(label))
            eps, accuracy = [point.eps * scale for point in line], [100 * point.accuracy for point in line]
            if label in curve.lines:
                axes.plot(eps, accuracy, dashes, color=colour, clip_on=False, zorder=3)
            for x, point in zip(eps, line, strict=True):
                if (ends := ends_of(point.result)) is not None:
                    axes.vlines(x, 100 * ends[0], 100 * ends[1], color=colour, linewidth=1.2, zorder=3)
            if label in marked:
                axes.axvline(marked[label] * scale, color=colour, linestyle=":", linewidth=1.3, zorder=2)
            for x, y, point in zip(eps, accuracy, line, strict=True):
                face = PAPER if point.partial else colour
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, clip_on=False, zorder=4)
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{norm} eps, {'in 1/255' if scale == 255 else 'pixels in [0, 1]'}".strip())
        axes.set_title("accuracy, %", loc="left", fontsize=12)
        axes.grid(axis="y")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=8)
        words = [f"{label}: {_line_words(line, scale)}" for label, line in shown.items()]
        svg = to_svg(figure, name, f"{curve.dataset}: {title}", "; ".join(words))
    caption = f"Clean accuracy at eps 0. Attack: {curve.attack}."
    caption += ends_words((point.result for line in shown.values() for point in line), "Vertical lines")
    if marked:
        caption += " A dotted line is the eps of a run's training."
    if any(point.partial for line in shown.values() for point in line):
        caption += HOLLOW
    if curve.marks:
        caption += " Marks without a line are published."
    return Plot(curve.dataset, title, caption, svg, {label: curve.remarks.get(label, "") for label in shown})


def _line_words(line: list[Point], scale: int) -> str:
    return ", ".join(f"{100 * point.accuracy:.1f} % at eps {point.eps * scale:.4g}" for point in line)
