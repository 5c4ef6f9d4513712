"""Runs side by side: one row a run, one column a measure, and a mark wherever two values do not compare."""

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Literal

from lit_robust.report.protocol import differences, limits, usual
from lit_robust.report.runs import is_partial
from lit_robust.report.titles import category, dataset_title, metric_title, order, value_text
from lit_robust.results import Result, RunResults

CSV_HEADER = ("run", "dataset", "metric", "value", "unit", "count", "partial", "protocol")
MISSING = "\N{EN DASH}"
SYMBOLS = {"difference": "\N{DAGGER}", "restriction": "\N{DOUBLE DAGGER}"}
PARTIAL_NOTE = "partial: measured on a part of the test set only; not to be compared with other values."


@dataclass(frozen=True)
class Note:
    """A sentence beneath the table.

    Attributes:
        kind: ``difference``, the value was measured otherwise than the others of its column; ``restriction``, its
            test set was cut down.
        text: the sentence.
    """

    kind: Literal["difference", "restriction"]
    text: str


@dataclass(frozen=True)
class Column:
    """One measure.

    Attributes:
        dataset: title of the test set.
        title: title of the metric.
        unit: ``%`` for fractions, else the results' unit.
    """

    dataset: str
    title: str
    unit: str


@dataclass(frozen=True)
class Cell:
    """One value of the table.

    Attributes:
        text: what a reader sees; a percentage where the value is a fraction.
        result: the value itself.
        partial: whether only a part of the test set was seen.
        notes: numbers of the notes that hold for it.
    """

    text: str
    result: Result
    partial: bool
    notes: tuple[int, ...]


@dataclass
class Table:
    """The comparison.

    Attributes:
        columns: the measures, in the order of reading.
        rows: a run's label to its cells, one a column; None where the run lacks the value.
        notes: the sentences beneath.
    """

    columns: list[Column]
    rows: dict[str, list[Cell | None]]
    notes: list[Note] = field(default_factory=list)

    @property
    def has_partial(self) -> bool:
        """Whether any value is partial."""
        return any(cell.partial for row in self.rows.values() for cell in row if cell)

    def mark(self, number: int) -> str:
        """Return a note's mark: a dagger (difference) or double dagger (restriction), numbered if there are several."""
        kind = self.notes[number].kind
        alike = [place for place, note in enumerate(self.notes) if note.kind == kind]
        return SYMBOLS[kind] + (str(alike.index(number) + 1) if len(alike) > 1 else "")

    def sentences(self) -> list[str]:
        """Return the sentences beneath the table, each behind its mark."""
        notes = [f"{self.mark(number)} {note.text}" for number, note in enumerate(self.notes)]
        return notes + ([PARTIAL_NOTE] if self.has_partial else [])

    def _number(self, note: Note) -> int:
        if note not in self.notes:
            self.notes.append(note)
        return self.notes.index(note)

    def _add(self, found: Mapping[str, Result]) -> None:
        reference = usual(list(found.values()))
        owner = next(label for label, result in found.items() if result is reference)
        self.columns.append(
            Column(
                dataset_title(reference.dataset),
                metric_title(reference),
                "%" if reference.unit == "fraction" else reference.unit,
            )
        )
        for label, row in self.rows.items():
            result = found.get(label)
            if result is None:
                row.append(None)
                continue
            notes = []
            if other := differences(result, reference):
                notes.append(self._number(Note("difference", f"{other} (as for {owner}).")))
            for text in limits(result):
                notes.append(self._number(Note("restriction", f"{dataset_title(result.dataset)}: {text}.")))
            row.append(Cell(value_text(result.value, result.unit), result, is_partial(result), tuple(notes)))


def compare(runs: Mapping[str, RunResults]) -> Table:
    """Put runs side by side.

    Biases of single categories are left to the plot and to the CSV. A value measured otherwise than most of its
    column (or, without a majority, than the first) gets a dagger and a note that says in what it differs.

    Args:
        runs: unique label to results, in the order of the rows.
    """
    columns: dict[tuple[str, str, int], dict[str, Result]] = {}
    for label, found in runs.items():
        for result in found.results:
            if category(result) is not None:
                continue
            # Two attacks of one norm and eps share a key: the second gets a column of its own.
            turn = 0
            while label in columns.get((result.dataset, result.metric, turn), {}):
                turn += 1
            columns.setdefault((result.dataset, result.metric, turn), {})[label] = result
    table = Table([], {label: [] for label in runs})
    for column in sorted(columns.values(), key=lambda found: order(next(iter(found.values())))):
        table._add(column)
    return table


def markdown(table: Table) -> str:
    """Return the table in Markdown, percentages with one decimal, the notes as a list beneath."""
    heads = ["Run", *(f"{column.dataset}: {column.title} ({column.unit})" for column in table.columns)]
    lines = [_line(heads), f"| --- |{' ---: |' * len(table.columns)}"]
    for label, row in table.rows.items():
        lines.append(_line([label, *(words(table, cell) for cell in row)]))
    return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in table.sentences())]).rstrip("\n") + "\n"


def words(table: Table, cell: Cell | None) -> str:
    """Return what stands in a cell: the value, its notes' marks, and whether it is partial."""
    if cell is None:
        return MISSING
    return " ".join([cell.text, *map(table.mark, cell.notes), *(["(partial)"] if cell.partial else [])])


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def csv_text(runs: Mapping[str, RunResults]) -> str:
    """Return every value, one a line, as the results files have them: fractions, nothing rounded.

    Columns are run, dataset, metric, value (empty where undefined), unit, count, partial (``yes`` or empty), and the
    protocol as JSON.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for label, found in runs.items():
        for result in found.results:
            value = "" if math.isnan(result.value) else repr(result.value)
            partial = "yes" if is_partial(result) else ""
            protocol = json.dumps(dict(result.protocol))
            writer.writerow([label, result.dataset, result.metric, value, result.unit, result.count, partial, protocol])
    return text.getvalue()
