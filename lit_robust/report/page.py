"""One self-contained page, or a table, from the results of runs."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import lit_robust
from lit_robust.errors import UserError
from lit_robust.files import write_text
from lit_robust.report.gallery import gallery
from lit_robust.report.markup import joined, legend, results_table, swatch_style
from lit_robust.report.plots import Plot, accuracy_plots, shape_bias_plots
from lit_robust.report.record import record
from lit_robust.report.runs import Run, load_runs
from lit_robust.report.table import compare, csv_text, markdown
from lit_robust.report.titles import category, dataset_title, sweep

SUFFIXES = (".html", ".md", ".csv")
PORTRAIT_COLUMNS = 11  # what fits on an upright sheet of A4 at 8 points


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Compare runs in one file, whose suffix says what is wanted.

    Args:
        runs: run folders, or results files; their order is that of the rows.
        output: ``.html`` for a page that holds all it needs, ``.md`` for the table, ``.csv`` for every value.

    Returns:
        ``output``.

    Raises:
        UserError: no run is named, one or its images cannot be read, or the suffix is another.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"The output {output} has no known suffix: name a file that ends in {', '.join(SUFFIXES)}.")
    loaded = load_runs(runs)
    found = {run.label: run.found for run in loaded}
    if suffix == ".csv":
        write_text(output, csv_text(found))
    elif suffix == ".md":
        write_text(output, markdown(compare(found)))
    else:
        write_text(output, page(loaded))
    return output


def page(runs: list[Run]) -> str:
    """Return the page as HTML; nothing in it is fetched from anywhere.

    Raises:
        UserError: an image of a run cannot be read.
    """
    found = {run.label: run.found for run in runs}
    labels = list(found)
    plots = [*accuracy_plots(found), *shape_bias_plots(found)]
    table = compare(found)
    sections = [
        _section("Results", results_table(table, runs), "wide" if len(table.columns) > PORTRAIT_COLUMNS else ""),
        _section("Plots", "".join(_figure(plot, labels) for plot in plots), "plots"),
        _section("Images", gallery(runs)),
        _section("How each number was measured", record(runs)),
    ]
    folder = files("lit_robust.report")
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(_title(labels)),
        style=(folder / "page.css").read_text(encoding="utf-8") + swatch_style(len(runs)),
        lede=escape(_lede(runs)),
        sections="\n".join(sections),
        version=escape(lit_robust.__version__),
    )


def _title(labels: list[str]) -> str:
    return f"Robustness of {labels[0]}" if len(labels) == 1 else f"{len(labels)} classifiers compared"


def _lede(runs: list[Run]) -> str:
    results = [result for run in runs for result in run.found.results]
    counts: dict[str, int] = {}
    for result in results:
        counts[result.dataset] = max(counts.get(result.dataset, 0), result.count)
    sets = [f"{dataset_title(dataset)} ({count:,} images)" for dataset, count in counts.items()]
    who = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    words = [f"The results of {who}{f' on {joined(sets)}' if sets else ''}."]
    if any(sweep(result) for result in results):
        words.append("Adversarial accuracy is the share of images that stay right when attacked within eps.")
    if any(category(result) or result.metric == "shape_bias" for result in results):
        words.append("Shape bias is the share of decisions for an image's shape among those for its shape or texture.")
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
