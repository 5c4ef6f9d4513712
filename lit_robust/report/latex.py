"""The comparison as a LaTeX table, for a paper."""

import re
from itertools import groupby

from lit_robust.core.errors import printable
from lit_robust.report.table import MISSING, Cell, Column, Table, parts

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\N{DAGGER}": r"\dag{}", "\N{DOUBLE DAGGER}": r"\ddag{}", "\N{SECTION SIGN}": r"\S{}",
    "\N{INFINITY}": r"$\infty$", "\N{EN DASH}": "--", "\N{MIDDLE DOT}": r"\textperiodcentered{}",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
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
    return escaped(cell.text) + raised + (" (partial)" if cell.partial else "")


def escaped(text: str) -> str:
    r"""Return text in which no character means anything to LaTeX.

    Example:
        >>> print(escaped("a_b & 5 %"))
        a\_b \& 5 \%
    """
    words = printable(" ".join(text.split()))
    return re.sub("|".join(map(re.escape, _ESCAPES)), lambda found: _ESCAPES[found[0]], words)
