"""One self-contained page, or a table, from the results of runs."""

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import lit_robust
from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.core.results import RunResults
from lit_robust.report.html import gallery, joined, legend, memory_models, record, results_table, swatch_style
from lit_robust.report.plots.accuracy import accuracy_plots
from lit_robust.report.plots.corruptions import corruption_error_plots, heat_maps
from lit_robust.report.plots.drawing import Plot
from lit_robust.report.plots.precision_recall import precision_recall_plots
from lit_robust.report.plots.shape_bias import shape_bias_plots
from lit_robust.report.published import published_runs
from lit_robust.report.runs import Run, load_runs
from lit_robust.report.table import Table, compare, compare_observers
from lit_robust.report.text import csv_text, latex, markdown
from lit_robust.report.titles import dataset_title, is_attacked

MOST_COLUMNS = 8  # fit on an upright sheet of A4 and on a screen of 1280 px


def write_report(runs: Sequence[Path], output: Path, published: Sequence[str] = ()) -> Path:
    """Compare runs in one file, whose suffix says what is wanted.

    Args:
        runs: run folders, or results files; their order is that of the rows.
        output: ``.html`` for a page that holds all it needs, ``.md`` or ``.tex`` for the table, ``.csv`` for every
            value.
        published: names of published networks to stand beneath the runs, or ``all`` alone for every one that shares
            a column with them.

    Returns:
        ``output``.

    Raises:
        UserError: no run is named, one or its images cannot be read, a published name is not known, or the suffix is
            another.
    """
    suffix = output.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(f"The output {output} has no known suffix: name a file that ends in {', '.join(WRITERS)}.")
    measured = load_runs(runs)
    text = WRITERS[suffix]([*measured, *published_runs(published, measured)])
    # The name of a folder, and so of a run, may hold bytes that are not text.
    write_text(output, text.encode("utf-8", "backslashreplace").decode())
    return output


def _results(runs: list[Run]) -> dict[str, RunResults]:
    return {run.label: run.found for run in runs}


def _tables(runs: list[Run]) -> dict[str, Table]:
    """Return the tables by their titles, the second only where observers are many."""
    found = _results(runs)
    observers = {"Error consistency by observer": compare_observers(found)}
    return {"Results": compare(found), **{title: table for title, table in observers.items() if table.columns}}


# What each suffix stands for.
WRITERS: dict[str, Callable[[list[Run]], str]] = {
    ".html": lambda runs: page(runs),
    ".md": lambda runs: "\n".join(map(markdown, _tables(runs).values())),
    ".csv": lambda runs: csv_text(_results(runs)),
    ".tex": lambda runs: "\n".join(latex(table, MOST_COLUMNS) for table in _tables(runs).values()),
}


def page(runs: list[Run]) -> str:
    """Return the page as HTML; nothing in it is fetched from anywhere.

    Args:
        runs: measured and published ones, in the order of the rows.

    Raises:
        UserError: an image of a run cannot be read.
    """
    found = _results(runs)
    labels = list(found)
    plots = [
        *accuracy_plots(found),
        *shape_bias_plots(found),
        *corruption_error_plots(found),
        *precision_recall_plots(found),
    ]
    sections = [
        *(_section(title, results_table(table, runs, MOST_COLUMNS)) for title, table in _tables(runs).items()),
        _section("Memory models", memory_models(runs)),
        _section("Plots", "".join(_figure(plot, labels) for plot in plots), "plots"),
        _section("Corruptions", heat_maps(found)),
        _section("Images", gallery(runs)),
        _section("How each number was measured", record(runs)),
    ]
    folder = files("lit_robust.report")
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(_title([run.label for run in runs if not run.published])),
        style=(folder / "page.css").read_text(encoding="utf-8") + swatch_style([run.published for run in runs]),
        lede=escape(_lede(runs)),
        sections="\n".join(sections),
        version=escape(lit_robust.__version__),
    )


def _title(labels: list[str]) -> str:
    return f"Robustness of {labels[0]}" if len(labels) == 1 else f"{len(labels)} classifiers compared"


def _lede(runs: list[Run]) -> str:
    measured = [run for run in runs if not run.published]
    results = [result for run in measured for result in run.found.results]
    counts: dict[str, int] = {}
    for result in results:
        title = dataset_title(result.dataset, [result])
        counts[title] = max(counts.get(title, 0), result.count)
    sets = [f"{title} ({count:,} images)" for title, count in counts.items()]
    who = "one run" if len(measured) == 1 else f"{len(measured)} runs"
    words = [f"The results of {who}{f' on {joined(sets)}' if sets else ''}."]
    if len(runs) > len(measured):
        words.append("Beneath stand published values, each with its source; none of them was measured here.")
    if any(map(is_attacked, results)):
        words.append("Adversarial accuracy is the share of images that stay right when attacked within eps.")
    if any(result.measure == "shape_bias" for result in results):
        words.append("Shape bias is the share of decisions for an image's shape among those for its shape or texture.")
    if any(result.measure == "mce" for result in results):
        words.append("mCE is the mean corruption error, 100 for AlexNet; lower is better.")
    words.append("Accuracies and biases are percentages; a dagger marks a value that was measured otherwise.")
    return " ".join(words)


def _section(title: str, inside: str, kind: str = "") -> str:
    box = f'<div class="{kind}">{inside}</div>' if kind else inside
    return f"<section><h2>{escape(title)}</h2>{box}</section>" if inside else ""


def _figure(plot: Plot, labels: list[str]) -> str:
    return (
        f'<figure class="plot"><h3>{escape(plot.title)}</h3>{plot.svg}{legend(plot.labels, labels)}'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def report(runs: list[Path], output: Path = Path("report.html"), published: Sequence[str] = ()) -> None:
    """Compare runs on one self-contained page, or in a table, and print where it stands.

    Args:
        runs: run folders that ``lit-robust test`` wrote into, or results files.
        output: file to write: ``.html`` for the page with plots and images, ``.md`` or ``.tex`` for the
            table, ``.csv`` for every value as a fraction, one a line.
        published: published networks to show beside the runs, such as ``resnet50``; ``all`` alone for every one that
            shares a column with them.

    Raises:
        UserError: no run is named, one cannot be read, a published network is not known, or the output has another
            suffix.
    """
    print(write_report(runs, output, published))
