"""The comparison as text: every value as CSV, the table in LaTeX, Markdown and for a terminal."""

import csv
import json
import math
import re
from collections.abc import Mapping
from io import StringIO
from itertools import groupby

from lit_robust.core.errors import printable
from lit_robust.core.results import RunResults
from lit_robust.report.grouping import seeds_of
from lit_robust.report.protocol import is_partial
from lit_robust.report.table import MISSING, Cell, Column, Table, parts, words

CSV_HEADER = (
    "run", "dataset", "metric", "value", "unit", "count", "low", "high", "sd", "seeds", "partial", "published",
    "warnings", "facets", "protocol",
)  # fmt: skip


def csv_text(runs: Mapping[str, RunResults]) -> str:
    """Return every value, one a line, as the results files have them: fractions, nothing rounded.

    A word that a spreadsheet would run as a formula has an apostrophe before it. Columns are run, dataset, metric,
    value (empty where undefined), unit, count, low and high (the ends of a 95 % interval, or empty), sd and seeds
    (of a mean over seeds: standard deviation and how many, or empty), partial (``yes``
    or empty), published (its source, or empty), warnings (sentences), and the facets and the protocol as JSON.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for label, found in runs.items():
        for result in found.results:
            value = "" if math.isnan(result.value) else repr(result.value)
            partial = "yes" if is_partial(result) else ""
            interval = ["", ""] if result.interval is None else [repr(end) for end in result.interval]
            warnings = " ".join(f"{warning.rstrip('.')}." for warning in result.warnings)
            source = result.protocol.get("published", "")
            texts = [warnings, json.dumps(dict(result.facets)), json.dumps(dict(result.protocol))]
            names = [inert(label), inert(result.dataset), inert(result.metric)]
            seeds = seeds_of(result)
            spread = [repr(seeds["sd"]), seeds["count"]] if seeds else ["", ""]
            measured = [value, inert(result.unit), result.count, *interval, *spread, partial]
            writer.writerow([*names, *measured, *map(inert, [str(source), *texts])])
    return text.getvalue()


def inert(word: str) -> str:
    """Return a word that no spreadsheet takes for a formula.

    Example:
        >>> inert("=1+1"), inert("top1")
        ("'=1+1", 'top1')
    """
    return f"'{word}" if word.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else word


_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\N{DAGGER}": r"\dag{}", "\N{DOUBLE DAGGER}": r"\ddag{}", "\N{SECTION SIGN}": r"\S{}",
    "\N{INFINITY}": r"$\infty$", "\N{EN DASH}": "--", "\N{MIDDLE DOT}": r"\textperiodcentered{}",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}", "\N{PLUS-MINUS SIGN}": r"$\pm$",
}  # fmt: skip


def latex(table: Table, most: int) -> str:
    """Return the comparison for a document that loads ``booktabs``, percentages with one decimal, the notes beneath.

    Marks and notes are those of the page; any LaTeX will do.

    Args:
        table: the comparison.
        most: columns of one ``tabular``; more make several, each with the rows that have a value in it.
    """
    tables = "\n\\par\\bigskip\n".join(_tabular(table, part) for part in parts(table.columns, most))
    notes = [rf"\par\noindent\footnotesize {escaped(sentence)}" for sentence in table.sentences()]
    return "\n".join(["% Needs \\usepackage{booktabs}.", tables, *notes]) + "\n"


def _tabular(table: Table, part: list[int]) -> str:
    columns = [table.columns[number] for number in part]
    rows = {label: [row[number] for number in part] for label, row in table.rows.items()}
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(part)}}}",
        r"\toprule",
        *_groups(columns),
        " & ".join(["", *(_stacked(column.head, column.unit) for column in columns)]) + r" \\",
        r"\midrule",
        *(
            " & ".join([escaped(label), *(_cell(table, cell) for cell in cells)]) + r" \\"
            for label, cells in rows.items()
            if any(cells)
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def _groups(columns: list[Column]) -> list[str]:
    """Return the line of test sets and attacks, each over its columns, and the rules beneath them."""
    cells, rules, place = [""], [], 2
    for name, members in groupby(column.group for column in columns):
        width = len(list(members))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(name)}}}")
        rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        place += width
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _stacked(title: str, unit: str) -> str:
    """Return a heading on several lines, broken at its commas."""
    lines = r" \\ ".join(escaped(part) for part in [*title.split(", "), unit])
    return rf"\shortstack[r]{{{lines}}}"


def _cell(table: Table, cell: Cell | None) -> str:
    if cell is None:
        return escaped(MISSING)
    marks = ",".join(escaped(table.mark(number)) for number in cell.notes)
    raised = rf"\textsuperscript{{{marks}}}" if marks else ""
    span = rf" {{\scriptsize [{escaped(cell.interval)}]}}" if cell.interval else ""
    value = " ".join(filter(None, [cell.text, cell.spread]))
    return escaped(value) + span + raised + (" (partial)" if cell.partial else "")


def escaped(text: str) -> str:
    r"""Return text in which no character means anything to LaTeX.

    Example:
        >>> print(escaped("a_b & 5 %"))
        a\_b \& 5 \%
    """
    words = printable(" ".join(text.split()))
    return re.sub("|".join(map(re.escape, _ESCAPES)), lambda found: _ESCAPES[found[0]], words)


def terminal(table: Table) -> str:
    """Return the table as aligned plain text, percentages with one decimal, the notes beneath."""
    lines = [["", "", *table.rows]]
    dataset = ""
    for number, column in enumerate(table.columns):
        title = column.title if column.unit != "%" else f"{column.title}, %"
        values = [words(table, row[number]) for row in table.rows.values()]
        lines.append([column.dataset if column.dataset != dataset else "", title, *values])
        dataset = column.dataset
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = ["  ".join([*_left(line[:2], widths), *_right(line[2:], widths[2:])]).rstrip() for line in lines]
    return "\n".join([*text, *map(printable, table.sentences())])


def _left(cells: list[str], widths: list[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]


def _right(cells: list[str], widths: list[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def markdown(table: Table) -> str:
    """Return the table in Markdown, percentages with one decimal, the notes as a list beneath."""
    heads = ["Run", *(f"{column.dataset}: {column.title} ({column.unit})" for column in table.columns)]
    lines = [_line(heads), f"| --- |{' ---: |' * len(table.columns)}"]
    for label, row in table.rows.items():
        lines.append(_line([label, *(words(table, cell) for cell in row)]))
    return "\n".join([*lines, "", *(f"- {_plain(note)}" for note in table.sentences())]).rstrip("\n") + "\n"


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", printable(" ".join(text.split())))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"
