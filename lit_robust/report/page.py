"""One self-contained page, or a table, from the results of runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import lit_robust
from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.core.results import Result
from lit_robust.report.grouping import grouped
from lit_robust.report.html import joined, swatch_style
from lit_robust.report.published import published_runs
from lit_robust.report.runs import Run, load_runs
from lit_robust.report.scorecard import card_columns, card_html, finding
from lit_robust.report.sections import MOST_COLUMNS, SECTIONS, found_of, section_html
from lit_robust.report.table import Table, compare, compare_observers
from lit_robust.report.text import csv_text, latex, markdown
from lit_robust.report.titles import dataset_title


def write_report(
    runs: Sequence[Path],
    output: Path,
    published: Sequence[str] = (),
    group: bool = False,
    more: Mapping[Path, Sequence[Result]] = {},
) -> Path:
    """Compare runs in one file, whose suffix says what is wanted.

    Args:
        runs: run folders, or results files; their order is that of the rows.
        output: ``.html`` for a page that holds all it needs, ``.md`` or ``.tex`` for the table, ``.csv`` for every
            value.
        published: names of published networks to stand beneath the runs, or ``all`` alone for every one that shares
            a column with them.
        group: whether runs that differ in their seed alone become one row, of means and standard deviations.
        more: a run's path to results next to those of its file, such as differences to another run.

    Returns:
        ``output``.

    Raises:
        UserError: no run is named, one or its images cannot be read, a published name is not known, or the suffix is
            another.
    """
    runs, output = [runs] if isinstance(runs, str | Path) else runs, Path(output)
    suffix = output.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(f"The output {output} has no known suffix: name a file that ends in {', '.join(WRITERS)}.")
    found = [
        replace(run, found=replace(run.found, results=[*run.found.results, *more.get(path, ())]))
        for path, run in zip(runs, load_runs(runs), strict=True)
    ]
    measured = grouped(found) if group else found
    text = WRITERS[suffix]([*measured, *published_runs(published, measured)])
    # The name of a folder, and so of a run, may hold bytes that are not text.
    write_text(output, text.encode("utf-8", "backslashreplace").decode())
    return output


def _tables(runs: list[Run]) -> dict[str, Table]:
    """Return the tables by their titles, the second only where observers are many."""
    found = found_of(runs)
    observers = {"Error consistency by observer": compare_observers(found)}
    return {"Results": compare(found), **{title: table for title, table in observers.items() if table.columns}}


# What each suffix stands for.
WRITERS: dict[str, Callable[[list[Run]], str]] = {
    ".html": lambda runs: page(runs),
    ".md": lambda runs: "\n".join(map(markdown, _tables(runs).values())),
    ".csv": lambda runs: csv_text(found_of(runs)),
    ".tex": lambda runs: "\n".join(latex(table, MOST_COLUMNS) for table in _tables(runs).values()),
}


def page(runs: list[Run]) -> str:
    """Return the page as HTML; nothing in it is fetched from anywhere.

    Args:
        runs: measured and published ones, in the order of the rows.

    Raises:
        UserError: an image of a run cannot be read.
    """
    columns = card_columns(runs)
    folder = files("lit_robust.report")
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(_title([run.label for run in runs if not run.published])),
        style=(folder / "page.css").read_text(encoding="utf-8") + swatch_style([run.published for run in runs]),
        finding=escape(finding(runs, columns)).replace(" %", "&nbsp;%"),
        card=card_html(runs, columns),
        lede=escape(_lede(runs)),
        sections="\n".join(section_html(section) for make in SECTIONS for section in make(runs)),
        version=escape(lit_robust.__version__),
    )


def _title(labels: list[str]) -> str:
    return f"Robustness of {labels[0]}" if len(labels) == 1 else f"{len(labels)} classifiers compared"


def _lede(runs: list[Run]) -> str:
    measured = [run for run in runs if not run.published]
    counts: dict[str, int] = {}
    for result in (result for run in measured for result in run.found.results):
        title = dataset_title(result.dataset, [result])
        counts[title] = max(counts.get(title, 0), result.count)
    sets = [f"{title} ({count:,} images)" for title, count in counts.items()]
    who = "one run" if len(measured) == 1 else f"{len(measured)} runs"
    words = [f"The results of {who}{f' on {joined(sets)}' if sets else ''}."]
    if len(runs) > len(measured):
        words.append("Beneath stand published values, each with its source; none of them was measured here.")
    return " ".join(words)


def report(
    runs: list[Path],
    output: Path = Path("report.html"),
    published: Sequence[str] = (),
    group: bool = False,
    more: Mapping[Path, Sequence[Result]] = {},
) -> None:
    """Compare runs on one self-contained page, or in a table, and print where it stands.

    Args:
        runs: run folders that ``lit-robust test`` wrote into, or results files.
        output: file to write: ``.html`` for the page with plots and images, ``.md`` or ``.tex`` for the
            table, ``.csv`` for every value as a fraction, one a line.
        published: published networks to show next to the runs, such as ``resnet50``; ``all`` alone for every one that
            shares a column with them.
        group: see ``write_report``.
        more: see ``write_report``.

    Raises:
        UserError: no run is named, one cannot be read, a published network is not known, or the output has another
            suffix.
    """
    print(write_report(runs, output, published, group, more))
