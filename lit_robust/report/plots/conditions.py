"""A set that people decided on: accuracy and error consistency by condition, networks against people."""

import math
from collections.abc import Mapping

from lit_robust.core.results import Result, RunResults
from lit_robust.reference import human_axis, human_conditions
from lit_robust.report.plots.drawing import (
    HOLLOW,
    INK,
    PAPER,
    WIDTH,
    Plot,
    new_figure,
    plot_settings,
    run_style,
    to_svg,
)
from lit_robust.report.protocol import is_partial
from lit_robust.report.titles import dataset_title

# Measure to what people's value is called in a protocol, and to the title.
DRAWN = {
    "accuracy_among_categories": ("accuracy", "Accuracy by condition"),
    "error_consistency": ("error_consistency", "Error consistency with people, by condition"),
}


def condition_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw each measure by condition, a line a run and one for people; two plots a set.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    found: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for label, run in runs.items():
        for result in run.results:
            if "condition" in result.facets and result.measure in DRAWN and math.isfinite(result.value):
                found.setdefault((result.dataset, result.measure), {}).setdefault(label, []).append(result)
    return [
        _plot(dataset, measure, lines, list(runs), f"conditions-{number}")
        for number, ((dataset, measure), lines) in enumerate(found.items())
    ]


def _plot(dataset: str, measure: str, lines: Mapping[str, list[Result]], labels: list[str], name: str) -> Plot:
    shown = dict.fromkeys(str(result.facets["condition"]) for results in lines.values() for result in results)
    known = [condition for condition in human_conditions(dataset) if condition in shown]
    order = [*known, *(condition for condition in shown if condition not in known)]
    key, title = DRAWN[measure]
    people: dict[int, float] = {}
    words = []
    with plot_settings():
        figure = new_figure(WIDTH, 300)
        axes = figure.add_subplot()
        for label, results in lines.items():
            colour, marker, dashes = run_style(labels.index(label))
            points = sorted((order.index(str(result.facets["condition"])), result) for result in results)
            axes.plot([x for x, _ in points], [r.value for _, r in points], dashes, color=colour, zorder=3)
            for x, result in points:
                if result.interval is not None:
                    axes.vlines(x, *result.interval, color=colour, linewidth=1.2, zorder=3)
                face = PAPER if is_partial(result) else colour
                axes.plot(x, result.value, marker, color=colour, markerfacecolor=face, clip_on=False, zorder=4)
                if key in result.protocol.get("humans", {}):
                    people[x] = float(result.protocol["humans"][key])
            words.append(f"{label}: {', '.join(f'{r.value:.3f} at {order[x]}' for x, r in points)}")
        axes.plot(list(people), list(people.values()), "-", color=INK, linewidth=2.0, zorder=2)
        words.append(f"people: {', '.join(f'{value:.3f} at {order[x]}' for x, value in people.items())}")
        axes.set_xticks(range(len(order)), order)
        axes.set_xlabel(human_axis(dataset))
        if measure == "accuracy_among_categories":
            axes.set_ylim(0, 1)
        axes.grid(axis="y")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=8)
        own = [result for results in lines.values() for result in results]
        svg = to_svg(figure, name, f"{dataset_title(dataset, own)}: {title}", "; ".join(words))
    caption = "The thick line is people. Vertical lines are 95 % intervals."
    if any(is_partial(result) for result in own):
        caption += HOLLOW
    return Plot(dataset_title(dataset, own), title, caption, svg, dict.fromkeys(lines, ""))
