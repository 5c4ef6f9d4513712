"""A corruption benchmark: accuracy as tinted cells by corruption and severity, and corruption errors as bars."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape

from lit_robust.core.results import Result, RunResults
from lit_robust.report.grouping import ends_of, ends_words
from lit_robust.report.html import named
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
from lit_robust.report.table import MISSING
from lit_robust.report.titles import dataset_title, of_corruptions, order

# Reading order and groups of Hendrycks and Dietterich 2019, figure 1; the last four enter no mean.
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
SEVERITIES = (1, 2, 3, 4, 5)
_PLACES = {name: place for place, name in enumerate(name for names in GROUPS.values() for name in names)}


@dataclass
class CorruptionValues:
    """What one run has on one corruption benchmark.

    Attributes:
        cells: corruption and severity to accuracy.
        means: corruption to accuracy over its severities.
        errors: corruption to corruption error (1 is AlexNet's).
        mean_error: their mean, None if it is not there.
    """

    cells: dict[tuple[str, int], Result] = field(default_factory=dict)
    means: dict[str, Result] = field(default_factory=dict)
    errors: dict[str, Result] = field(default_factory=dict)
    mean_error: Result | None = None


def corruption_values(found: RunResults, dataset: str) -> CorruptionValues:
    """Return a run's values on a corruption benchmark; undefined ones are left out.

    Args:
        found: the run's results.
        dataset: the benchmark's name, such as ``imagenet-c``.
    """
    values = CorruptionValues()
    for result in found.results:
        if result.dataset != dataset or not math.isfinite(result.value):
            continue
        corruption, severity = result.facets.get("corruption"), result.facets.get("severity")
        if result.measure == "mce":
            values.mean_error = result
        elif corruption is None:
            continue
        elif result.measure == "ce":
            values.errors[corruption] = result
        elif result.measure == "top1" and severity is not None:
            values.cells[corruption, severity] = result
        elif result.measure == "top1":
            values.means[corruption] = result
    return values


def in_order(corruptions: Iterable[str]) -> list[str]:
    """Return corruptions in reading order, each once; unknown ones stand last, by name.

    Example:
        >>> in_order(["rain", "fog", "shot_noise", "fog"])
        ['shot_noise', 'fog', 'rain']
    """
    return sorted(set(corruptions), key=lambda name: (_PLACES.get(name, len(_PLACES)), name))


def corrupted_sets(runs: Mapping[str, RunResults]) -> dict[str, str]:
    """Return the corruption benchmarks that any run has values of, in the table's order: name to title."""
    sets: dict[str, list[Result]] = {}
    for result in sorted((result for found in runs.values() for result in found.results), key=order):
        if of_corruptions(result):
            sets.setdefault(result.dataset, []).append(result)
    return {name: dataset_title(name, own) for name, own in sets.items()}


def heat_maps(runs: Mapping[str, RunResults], dataset: str) -> str:
    """Return every run's accuracies on a test set by corruption and severity as HTML; empty if no run has any.

    Numbers are percentages, and the darker a cell's tint, the higher. Where a run has accuracies over all severities
    alone, those stand in the last column.

    Args:
        runs: unique label to results, in the order of the page.
        dataset: name of the set.
    """
    maps = [
        _heat_map(number, label, values)
        for number, (label, found) in enumerate(runs.items())
        if (values := corruption_values(found, dataset)).cells
    ]
    return f'<h4>Accuracy by corruption and severity, %</h4><div class="heats">{"".join(maps)}</div>' if maps else ""


def _heat_map(number: int, label: str, values: CorruptionValues) -> str:
    corruptions = in_order([*values.means, *(name for name, _ in values.cells)])
    firsts = {in_order(names)[0] for names in _groups(corruptions)}
    heads = "".join(f'<th scope="col">{severity}</th>' for severity in SEVERITIES)
    rows = "".join(_heat_row(name, values, name in firsts) for name in corruptions)
    partial = any(is_partial(result) for result in (*values.cells.values(), *values.means.values()))
    tag = ' <span class="tag">partial</span>' if partial else ""
    return (
        f'<figure class="heat"><figcaption>{named(number, label)}{tag}</figcaption>'
        f'<table><thead><tr><th scope="col">severity</th>{heads}<th scope="col">mean</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></figure>"
    )


def _groups(corruptions: list[str]) -> list[list[str]]:
    known = [[name for name in names if name in corruptions] for names in GROUPS.values()]
    other = [name for name in corruptions if not any(name in names for names in GROUPS.values())]
    return [names for names in (*known, other) if names]


def _heat_row(name: str, values: CorruptionValues, first: bool) -> str:
    cells = [values.cells.get((name, severity)) for severity in SEVERITIES]
    head = f'<th scope="row">{escape(name.replace("_", " "))}</th>'
    start = ' class="first"' if first else ""
    return f"<tr{start}>{head}{''.join(map(_heat_cell, cells))}{_heat_cell(values.means.get(name))}</tr>"


def _heat_cell(result: Result | None) -> str:
    if result is None:
        return f'<td class="missing">{MISSING}</td>'
    share = 100 * min(max(result.value, 0.0), 1.0)
    title = f"{result.value:.6g} ({result.unit}), {result.count:,} images"
    return f'<td style="--share: {share:.1f}%" title="{escape(title)}">{100 * result.value:.0f}</td>'


MEAN = "mean (mCE)"
MOST_BARS = 4  # next to each other in a row, before they are too thin to tell apart


def corruption_error_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw corruption errors, a row a corruption; one plot a benchmark.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    plots = []
    for number, (dataset, title) in enumerate(corrupted_sets(runs).items()):
        values = {label: corruption_values(found, dataset) for label, found in runs.items()}
        values = {label: found for label, found in values.items() if found.errors}
        if values:
            plots.append(_error_plot(values, list(runs), title, f"errors-{number}"))
    return plots


def _error_plot(values: Mapping[str, CorruptionValues], labels: list[str], dataset: str, name: str) -> Plot:
    has_mean = any(found.mean_error for found in values.values())
    rows = [MEAN] * has_mean + in_order(corruption for found in values.values() for corruption in found.errors)
    percent = {label: _percentages(found) for label, found in values.items()}
    title = "Corruption errors"
    few = len(values) <= MOST_BARS
    with plot_settings():
        figure = new_figure(WIDTH, 80 + len(rows) * (14 + 9 * len(values) if few else 30))
        axes = figure.add_subplot()
        for number, (label, shares) in enumerate(percent.items()):
            colour, marker, _ = run_style(labels.index(label))
            shift = 0.7 * ((number + 0.5) / len(values) - 0.5)
            for row, share in shares.items():
                y = rows.index(row) + shift
                hollow, span = _is_partial(values[label], row), ends_of(_of(values[label], row))
                if span is not None:
                    axes.hlines(y, 100 * span[0], 100 * span[1], color=INK, linewidth=1.0, zorder=4)
                if few:
                    thick = 0.7 / len(values) * 0.8
                    axes.barh(y, share, thick, color=PAPER if hollow else colour, edgecolor=colour, zorder=3)
                else:
                    axes.plot(share, y, marker, color=PAPER if hollow else colour, markeredgecolor=colour, zorder=3)
        axes.axvline(100, color=INK, linewidth=1.0, zorder=2)
        axes.set_xlim(left=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
        if has_mean:
            axes.get_yticklabels()[0].set_fontweight("bold")
        for place in range(len(rows) - 1):
            axes.axhline(place + 0.5, color=INK if has_mean and place == 0 else RULE, linewidth=0.8, zorder=1)
        axes.set_xlabel("corruption error, % of AlexNet's")
        axes.tick_params(length=0, pad=6)
        axes.spines[:].set_visible(False)
        words = (
            f"{label}: {', '.join(f'{r} {v:.1f} %' for r, v in shares.items())}" for label, shares in percent.items()
        )
        svg = to_svg(figure, name, f"{dataset}: {title}", "; ".join(words))
    caption = "Errors summed over the severities, divided by AlexNet's; 100 is AlexNet. Lower is better."
    caption += "" if has_mean else " There is no mean, as corruptions are missing."
    caption += ends_words((_of(found, row) for label, found in values.items() for row in percent[label]), "Thin lines")
    if any(_is_partial(found, row) for label, found in values.items() for row in percent[label]):
        caption += HOLLOW
    return Plot(dataset, title, caption, svg, {label: _legend_words(found) for label, found in values.items()})


def _percentages(values: CorruptionValues) -> dict[str, float]:
    mean = {MEAN: 100 * values.mean_error.value} if values.mean_error else {}
    return {**mean, **{name: 100 * values.errors[name].value for name in in_order(values.errors)}}


def _is_partial(values: CorruptionValues, row: str) -> bool:
    return is_partial(_of(values, row))


def _of(values: CorruptionValues, row: str) -> Result:
    return values.mean_error if row == MEAN and values.mean_error is not None else values.errors[row]


def _legend_words(values: CorruptionValues) -> str:
    mean = [f"mCE {100 * values.mean_error.value:.1f} %"] if values.mean_error else []
    return ", ".join([*mean, *(["published"] if is_published(next(iter(values.errors.values()))) else [])])
