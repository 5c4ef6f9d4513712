"""The comparison for a terminal: one line a measure, one column a run."""

from lit_robust.core.errors import printable
from lit_robust.report.table import Table, words


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
