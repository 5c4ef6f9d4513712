"""Precision against recall of anomaly detection, where a run kept the curve."""

from collections.abc import Mapping
from reprlib import repr as short

from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults
from lit_robust.report.plots.drawing import PARTIAL_MEANS, WIDTH, Plot, new_figure, plot_settings, run_style, to_svg
from lit_robust.report.protocol import is_partial
from lit_robust.report.titles import dataset_title, metric_title, value_text

KEY = "precision_recall"


def curve_of(result: Result) -> list[tuple[float, float]]:
    """Return the recall and precision pairs that a value keeps in its protocol, by recall; empty if it has none.

    Raises:
        UserError: what it keeps is not pairs of numbers.
    """
    kept = result.protocol.get(KEY) or []
    try:
        return sorted((float(recall), float(precision)) for recall, precision in kept)
    except (TypeError, ValueError):
        raise UserError(
            f"{result.key} has a {KEY} of {short(kept)}, which is not pairs of numbers: write the results file again "
            "with `lit-robust test`."
        ) from None


def precision_recall_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw precision against recall, a step line a run; one plot for each test set and score.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    groups: dict[tuple[str, str], dict[str, Result]] = {}
    for label, found in runs.items():
        for result in found.results:
            if curve_of(result):
                groups.setdefault((result.dataset, result.metric), {})[label] = result
    return [_plot(found, list(runs), f"precision-{number}") for number, found in enumerate(groups.values())]


def _plot(found: Mapping[str, Result], labels: list[str], name: str) -> Plot:
    first = next(iter(found.values()))
    measure = metric_title(first)
    dataset, title = dataset_title(first.dataset, found.values()), f"Precision against recall, {measure}"
    with plot_settings():
        figure = new_figure(WIDTH, 340)
        axes = figure.add_subplot()
        for label, result in found.items():
            colour, _, dashes = run_style(labels.index(label))
            recall, precision = zip(*curve_of(result), strict=True)
            # Average precision sums steps: each precision holds from the recall before up to its own.
            steps = [100 * r for r in recall], [100 * p for p in precision]
            axes.step(*steps, dashes, where="pre", color=colour, clip_on=False)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel("recall, %")
        axes.set_title("precision, %", loc="left", fontsize=12)
        axes.grid(axis="y")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=8)
        shares = {label: _legend_words(result) for label, result in found.items()}
        svg = to_svg(
            figure, name, f"{dataset}: {title}", "; ".join(f"{label}: {words}" for label, words in shares.items())
        )
    caption = "Anomalies are the positives; the area beneath a line is its AUPR."
    if any(map(is_partial, found.values())):
        caption += f" Lines marked as partial: {PARTIAL_MEANS}"
    return Plot(dataset, title, caption, svg, shares)


def _legend_words(result: Result) -> str:
    area = f"{metric_title(result)} {value_text(result.value, result.unit)} %"
    return f"{area}, partial" if is_partial(result) else area
