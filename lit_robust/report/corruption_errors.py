"""Corruption errors side by side: bars for few runs, marks for many."""

from collections.abc import Mapping

from lit_robust.core.results import RunResults
from lit_robust.report.corruptions import CorruptionValues, corrupted_sets, corruption_values, in_order
from lit_robust.report.plot import HOLLOW, WIDTH, Plot
from lit_robust.report.protocol import is_partial, is_published
from lit_robust.report.svg import INK, PAPER, RULE, new_figure, plot_settings, run_style, to_svg

MEAN = "mean (mCE)"
MOST_BARS = 4  # beside each other in a row, before they are too thin to tell apart


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
            plots.append(_plot(values, list(runs), title, f"errors-{number}"))
    return plots


def _plot(values: Mapping[str, CorruptionValues], labels: list[str], dataset: str, name: str) -> Plot:
    rows = [MEAN, *in_order(corruption for found in values.values() for corruption in found.errors)]
    percent = {label: _percentages(found) for label, found in values.items()}
    title = f"{dataset}: corruption errors"
    few = len(values) <= MOST_BARS
    with plot_settings():
        figure = new_figure(WIDTH, 80 + len(rows) * (14 + 9 * len(values) if few else 30))
        axes = figure.add_subplot()
        for number, (label, shares) in enumerate(percent.items()):
            colour, marker, _ = run_style(labels.index(label))
            shift = 0.7 * ((number + 0.5) / len(values) - 0.5)
            for row, share in shares.items():
                y = rows.index(row) + shift
                hollow = _is_partial(values[label], row)
                if few:
                    thick = 0.7 / len(values) * 0.8
                    axes.barh(y, share, thick, color=PAPER if hollow else colour, edgecolor=colour, zorder=3)
                else:
                    axes.plot(share, y, marker, color=PAPER if hollow else colour, markeredgecolor=colour, zorder=3)
        axes.axvline(100, color=INK, linewidth=1.0, zorder=2)
        axes.set_xlim(left=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
        axes.get_yticklabels()[0].set_fontweight("bold")
        for place in range(len(rows) - 1):
            axes.axhline(place + 0.5, color=INK if place == 0 else RULE, linewidth=0.8, zorder=1)
        axes.set_xlabel("corruption error, % of AlexNet's")
        axes.tick_params(length=0, pad=6)
        axes.spines[:].set_visible(False)
        words = (
            f"{label}: {', '.join(f'{r} {v:.1f} %' for r, v in shares.items())}" for label, shares in percent.items()
        )
        svg = to_svg(figure, name, title, "; ".join(words))
    caption = "Errors summed over the severities, divided by AlexNet's; 100 is AlexNet. Lower is better."
    if any(_is_partial(found, row) for label, found in values.items() for row in percent[label]):
        caption += HOLLOW
    return Plot(title, caption, svg, {label: _legend_words(found) for label, found in values.items()})


def _percentages(values: CorruptionValues) -> dict[str, float]:
    mean = {MEAN: 100 * values.mean_error.value} if values.mean_error else {}
    return {**mean, **{name: 100 * values.errors[name].value for name in in_order(values.errors)}}


def _is_partial(values: CorruptionValues, row: str) -> bool:
    result = values.mean_error if row == MEAN else values.errors[row]
    return result is not None and is_partial(result)


def _legend_words(values: CorruptionValues) -> str:
    mean = [f"mCE {100 * values.mean_error.value:.1f} %"] if values.mean_error else []
    return ", ".join([*mean, *(["published"] if is_published(next(iter(values.errors.values()))) else [])])
