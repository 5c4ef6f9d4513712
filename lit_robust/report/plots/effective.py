"""Effective robustness: accuracy on a shifted set against the clean one, with published ones (Taori et al. 2020)."""

import math
from collections.abc import Mapping

from lit_robust.core.effective_robustness import Line, effective_robustness, fit_line
from lit_robust.core.results import Result, RunResults
from lit_robust.reference import standard_networks
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
from lit_robust.report.protocol import is_partial
from lit_robust.report.titles import dataset_title

# A shifted set to the accuracy on ImageNet's images of the same classes: its metric, and its column of published ones.
CLEAN = {
    "imagenet-a": ("top1_imagenet_a_classes", "imagenet_of_a"),
    "imagenet-r": ("top1_imagenet_r_classes", "imagenet_of_r"),
    "objectnet": ("top1_objectnet_classes", "imagenet_of_objectnet"),
    "imagenet-sketch": ("top1", "imagenet"),
    "imagenet-v2-matched-frequency": ("top1", "imagenet"),
    "imagenet-v2-threshold-0.7": ("top1", "imagenet"),
    "imagenet-v2-top-images": ("top1", "imagenet"),
}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
IMAGENET = 1000


def pairs(found: RunResults, dataset: str) -> tuple[Result, Result] | None:
    """Return a run's accuracy on ImageNet's images of a set's classes, and on the set; None where one is lacking."""
    metric, _ = CLEAN[dataset]
    clean = next((r for r in found.results if (r.dataset, r.metric) == ("imagenet", metric)), None)
    shifted = next((r for r in found.results if (r.dataset, r.metric) == (dataset, "top1")), None)
    if clean is None or shifted is None or clean.protocol.get("num_classes", IMAGENET) != IMAGENET:
        return None
    return (clean, shifted) if 0 < clean.value < 1 and 0 < shifted.value < 1 else None


def effective_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw each shifted set that any run was measured on with the clean images of its classes.

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    plots = []
    for number, dataset in enumerate(CLEAN):
        points = {label: both for label, found in runs.items() if (both := pairs(found, dataset))}
        if points:
            plots.append(_plot(dataset, points, list(runs), f"effective-{number}"))
    return plots


def _plot(dataset: str, points: Mapping[str, tuple[Result, Result]], labels: list[str], name: str) -> Plot:
    # ImageNet-A was chosen by ResNet-50's errors: its accuracy of 0 has no logit.
    networks = [one for one in standard_networks(dataset, CLEAN[dataset][1]) if one[2] > 0]
    line = fit_line([clean for _, clean, _ in networks], [shifted for _, _, shifted in networks])
    beyond = {label: effective_robustness(one.value, other.value, line) for label, (one, other) in points.items()}
    title = "Effective robustness"
    owner = dataset_title(dataset, [shifted for _, shifted in points.values()])
    with plot_settings():
        figure = new_figure(WIDTH, 360)
        axes = figure.add_subplot()
        axes.plot(
            [_logit(clean) for _, clean, _ in networks],
            [_logit(shifted) for _, _, shifted in networks],
            "o",
            color=RULE,
            markersize=4,
            zorder=2,
        )
        for label, (clean, shifted) in points.items():
            colour, marker, _ = run_style(labels.index(label))
            x, y = _logit(clean.value), _logit(shifted.value)
            if shifted.interval is not None and 0 < shifted.interval[0] <= shifted.interval[1] < 1:
                low, high = map(_logit, shifted.interval)
                axes.vlines(x, low, high, color=colour, linewidth=1.2, zorder=3)
            face = PAPER if is_partial(clean) or is_partial(shifted) else colour
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=9, zorder=4)
        ends = axes.get_xlim()
        axes.plot(ends, [line.intercept + line.slope * end for end in ends], "-", color=INK, linewidth=1.2, zorder=2)
        axes.set_xlim(ends)
        for axis, limits in ((axes.xaxis, ends), (axes.yaxis, axes.get_ylim())):
            ticks = [value for value in TICKS if limits[0] <= _logit(value) <= limits[1]]
            axis.set_ticks([_logit(value) for value in ticks], [f"{100 * value:g}" for value in ticks])
        axes.set_xlabel("accuracy on ImageNet's images of these classes, %")
        axes.set_title(f"accuracy on {owner}, %", loc="left", fontsize=12)
        axes.grid(axis="both")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=6)
        words = "; ".join(f"{label}: {100 * value:+.1f} points" for label, value in beyond.items())
        svg = to_svg(figure, name, f"{owner}: {title}", words)
    caption = _caption(line)
    if any(is_partial(result) for both in points.values() for result in both):
        caption += HOLLOW
    return Plot(owner, title, caption, svg, {label: f"{100 * value:+.1f} points" for label, value in beyond.items()})


def _caption(line: Line) -> str:
    return (
        f"The line is fit to the logits of {line.count} published networks with standard training, the grey points "
        f"(imagenet-testbed), which lie {line.deviation:.2f} logits about it. Points are the accuracy beyond the line: "
        "above it a network is more robust than its clean accuracy lets expect. Vertical lines are 95 % intervals."
    )


def _logit(value: float) -> float:
    return math.log(value / (1 - value))
