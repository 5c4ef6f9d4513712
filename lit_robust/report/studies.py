"""The page's sections of what `lit-robust analyze` found: pictures, and curves over eps, run against run."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from lit_robust.core.results import Result, RunResults
from lit_robust.report.plots.drawing import WIDTH, Plot, new_figure, plot_settings, run_style, to_svg
from lit_robust.report.runs import Run, read_picture

REACHED = "inversion_within_representation_distance"


def study_pictures(runs: Sequence[Run]) -> dict[str, str]:
    """Return the pictures of studies as HTML by the study's name: of one name those of all runs beneath each other.

    A study's picture is an example whose kind is its data set, as `lit-robust analyze` writes it.

    Args:
        runs: all runs of the page.

    Raises:
        UserError: a picture cannot be read, is not a PNG, or lies outside its run's folder.
    """
    found: dict[str, list[str]] = {}
    for run in runs:
        for example in run.found.examples:
            if "study" not in run.found.run or example.kind != example.dataset:
                continue
            for role, file in example.images.items():
                picture, words = read_picture(run, file), escape(f"{run.label}: {example.captions.get(role, '')}")
                image = (
                    f'<p class="gone">{escape(file)} is missing from the run\'s folder.</p>'
                    if picture is None
                    else f'<img src="{picture.uri}" alt="{words}" style="max-width: 100%; height: auto">'
                )
                found.setdefault(example.kind, []).append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")
    return {kind: "".join(figures) for kind, figures in found.items()}


def distance_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw how near a representation comes to another within a distance of the start, a line a run (Figure 4).

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    panels: dict[tuple[str, str, str], dict[str, list[Result]]] = {}
    for label, found in runs.items():
        for result in found.results:
            if result.measure == REACHED:
                key = (result.dataset, str(result.facets["start"]), str(result.protocol.get("norm", "")))
                panels.setdefault(key, {}).setdefault(label, []).append(result)
    return [
        _distance_plot(dataset, start, norm, lines, list(runs), f"reach-{number}")
        for number, ((dataset, start, norm), lines) in enumerate(panels.items())
    ]


def _distance_plot(
    dataset: str, start: str, norm: str, lines: Mapping[str, list[Result]], labels: list[str], name: str
) -> Plot:
    title = f"Distance of representations, from {start}"
    words = []
    with plot_settings():
        figure = new_figure(WIDTH, 300)
        axes = figure.add_subplot()
        for label, results in lines.items():
            colour, marker, dashes = run_style(labels.index(label))
            ordered = sorted(results, key=lambda result: float(result.facets["eps"]))
            eps = [float(result.facets["eps"]) for result in ordered]
            axes.plot(eps, [result.value for result in ordered], dashes, color=colour, marker=marker, clip_on=False)
            for x, result in zip(eps, ordered, strict=True):
                if result.interval is not None:
                    axes.vlines(x, *result.interval, color=colour, linewidth=1.2)
            points = ", ".join(f"{result.value:.3f} at {x:g}" for x, result in zip(eps, ordered, strict=True))
            words.append(f"{label}: {points}")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"largest distance from the start, {norm}, pixels in [0, 1]")
        axes.set_title("relative distance to the target's representation", loc="left", fontsize=12)
        axes.grid(axis="y")
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=8)
        svg = to_svg(figure, name, f"{dataset}: {title}", "; ".join(words))
    caption = (
        "How near a search comes to the representation of an image while it stays near another: 0 is there. Vertical "
        "lines are 95 % intervals of the mean over images."
    )
    return Plot(dataset, title, caption, svg, dict.fromkeys(lines, ""))


def detector_plots(runs: Mapping[str, RunResults]) -> list[Plot]:
    """Draw how many units of each layer detect concepts of each category, a line a run (Figures 7 and 10).

    Args:
        runs: unique label to results; a run's place settles its colour and mark.
    """
    counts: dict[str, dict[str, dict[str, float]]] = {}
    for label, found in runs.items():
        for result in found.results:
            if result.measure == "detectors" and result.facets.get("layer") != "all":
                of_run = counts.setdefault(str(result.facets["category"]), {}).setdefault(label, {})
                of_run[str(result.facets["layer"])] = result.value
    if not counts:
        return []
    words = []
    with plot_settings():
        figure = new_figure(WIDTH, 300)
        panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
        for axes, (category, lines) in zip(panels, counts.items(), strict=True):
            for label, of_layers in lines.items():
                colour, marker, dashes = run_style(list(runs).index(label))
                places = range(1, len(of_layers) + 1)
                axes.plot(places, list(of_layers.values()), dashes, color=colour, marker=marker, clip_on=False)
                of_each = ", ".join(f"{value:g} in {layer}" for layer, value in of_layers.items())
                words.append(f"{label}, {category}: {of_each}")
            axes.set_ylim(bottom=0)
            axes.set_title(category, loc="left", fontsize=12)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y")
            axes.spines[["top", "left", "right"]].set_visible(False)
            axes.tick_params(length=0, pad=8)
        figure.supxlabel("layer, from the first", fontsize=11)
        svg = to_svg(figure, "detectors", "concepts: detectors by layer", "; ".join(words))
    caption = "Units whose IoU with their best concept exceeds the least one of a detector, by the concept's category."
    labels = dict.fromkeys((label for lines in counts.values() for label in lines), "")
    return [Plot("concepts", "Detectors by layer", caption, svg, labels)]


def layer_tables(runs: Mapping[str, RunResults]) -> dict[str, str]:
    """Return tables of what studies measured by layer, category or variant: HTML by the study's name, a column a run.

    Args:
        runs: unique label to results.
    """
    found: dict[str, dict[str, dict[tuple[str, ...], dict[str, Result]]]] = {}
    for label, run in runs.items():
        for result in run.results if "study" in run.run else ():
            if not result.facets.keys().isdisjoint(LINES) and "unit" not in result.facets:
                line = tuple(str(result.facets[axis]) for axis in LINES if axis in result.facets)
                of_study = found.setdefault(str(run.run["study"]), {})
                of_study.setdefault(result.measure, {}).setdefault(line, {})[label] = result
    return {kind: "".join(_layer_table(*entry) for entry in tables.items()) for kind, tables in found.items()}


LINES = ("layer", "category", "variant")


def _layer_table(measure: str, lines: Mapping[tuple[str, ...], Mapping[str, Result]]) -> str:
    labels = list(dict.fromkeys(label for line in lines.values() for label in line))
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows = "".join(
        f"<tr><th>{escape(', '.join(line))}</th>"
        + "".join(f"<td>{_value(values[label]) if label in values else ''}</td>" for label in labels)
        + "</tr>"
        for line, values in lines.items()
    )
    title = escape(measure.replace("_", " "))
    return f"<details><summary>{title}</summary><table><tr><th></th>{head}</tr>{rows}</table></details>"


def _value(result: Result) -> str:
    """Return a value with its interval."""
    if math.isnan(result.value):
        return "undefined"
    ends = "" if result.interval is None else f" ({result.interval[0]:.4g} to {result.interval[1]:.4g})"
    return f"{result.value:.4g}{ends}"
