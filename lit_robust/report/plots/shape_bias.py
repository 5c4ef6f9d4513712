"""Shape against texture by category, in the manner of Geirhos et al. 2019, figure 4."""

import math
from collections.abc import Mapping
from typing import Any

from lit_robust.core.results import Result, RunResults
from lit_robust.report.grouping import ends_of, ends_words
from lit_robust.report.plots.drawing import (
    HOLLOW,
    INK,
    PAPER,
    RULE,
    WIDTH,
    Plot,
    new_figure,
    plot_settings,
    run_style,
    to_svg,
)
from lit_robust.report.protocol import is_partial, is_published
from lit_robust.report.titles import dataset_title, value_text

OVERALL = "all"


def biases(found: RunResults, dataset: str) -> dict[str, Result]:
    """Return a run's shape biases on a test set: category, or ``all``, to its result."""
    own = [result for result in found.results if result.dataset == dataset]
    rows = [(result.facets.get("category", OVERALL), result) for result in own if result.measure == "shape_bias"]
    return dict(sorted(rows, key=lambda row: row[0] != OVERALL))


def shape_bias_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw shape bias by category; one plot a test set.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    sets = dict.fromkeys(r.dataset for found in runs.values() for r in found.results if r.metric == "shape_bias")
    return [_shape_bias_plot(runs, dataset, f"bias-{number}") for number, dataset in enumerate(sets)]


def _shape_bias_plot(runs: Mapping[str, RunResults], dataset: str, name: str) -> Plot:
    found = {label: values for label, run in runs.items() if OVERALL in (values := biases(run, dataset))}
    # Published categories are rows only where a run has them, too: toy sets have others.
    measured = [values for values in found.values() if not is_published(values[OVERALL])] or list(found.values())
    rows = list(dict.fromkeys([OVERALL, *(row for values in measured for row in values)]))
    labels = list(runs)
    height = 1.0 if len(found) < 5 else 1.35
    own = [result for values in found.values() for result in values.values()]
    owner, title = dataset_title(dataset, own), "Shape or texture, by category"
    with plot_settings():
        figure = new_figure(WIDTH, 95 + 24 * height * len(rows))
        axes = figure.add_subplot()
        for number, (label, values) in enumerate(found.items()):
            # Equal values would hide each other: runs stand a little apart inside a row.
            shift = 0.5 * (number - (len(found) - 1) / 2) / max(len(found) - 1, 2)
            _draw_run(axes, {row: values[row] for row in rows if row in values}, rows, labels.index(label), shift)
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
        svg = to_svg(
            figure, name, f"{owner}: {title}", "; ".join(_bias_words(label, values) for label, values in found.items())
        )
    shares = {label: _legend_words(values[OVERALL]) for label, values in found.items()}
    return Plot(owner, title, _caption(found), svg, shares)


def _draw_run(axes: Any, values: Mapping[str, Result], rows: list[str], number: int, shift: float) -> None:
    colour, marker, dashes = run_style(number)
    overall = values[OVERALL]
    if math.isfinite(overall.value) and not is_published(overall):
        axes.axvline(1 - overall.value, color=colour, linestyle=dashes, linewidth=1.3, zorder=2)
    for row, result in values.items():
        if math.isfinite(result.value):
            face, edge = (PAPER, colour) if is_partial(result) else (colour, PAPER)
            x, y = 1 - result.value, rows.index(row) + shift
            if (ends := ends_of(result)) is not None:
                axes.hlines(y, 1 - ends[1], 1 - ends[0], color=colour, linewidth=1.2, zorder=3)
            axes.plot(x, y, marker, color=face, markeredgecolor=edge, markersize=9, clip_on=False, zorder=4)


def _mirrored(fraction: Any) -> Any:
    return 1 - fraction


def _caption(found: Mapping[str, Mapping[str, Result]]) -> str:
    values = [result for values in found.values() for result in values.values()]
    caption = (
        "Of the decisions for an image's shape or its texture, the fraction for each; other decisions do not count. "
        "A mark is a run's bias in one category of shapes, a line its bias over all images."
    )
    caption += ends_words(values, "Horizontal lines")
    if any(not math.isfinite(result.value) for result in values):
        caption += " A mark is missing where a run chose neither shape nor texture."
    if any(is_partial(result) for result in values):
        caption += HOLLOW
    if any(is_published(result) for result in values):
        caption += " Published values have marks and no line."
    return caption


def _bias_words(label: str, values: Mapping[str, Result]) -> str:
    return f"{label}: {', '.join(f'{row} {_percent(result)} shape' for row, result in values.items())}"


def _legend_words(overall: Result) -> str:
    return f"{_percent(overall)} shape{', published' if is_published(overall) else ''}"


def _percent(result: Result) -> str:
    words = value_text(result.value, result.unit)
    return f"{words} %" if math.isfinite(result.value) else words
