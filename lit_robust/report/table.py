"""Runs side by side: one row a run, one column a measure, and a mark wherever two values do not compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil
from typing import Literal

from lit_robust.core.results import Result, RunResults
from lit_robust.report.grouping import seeds_of
from lit_robust.report.protocol import differences, is_partial, is_published, limits, source_words, usual
from lit_robust.report.titles import (
    dataset_title,
    eps_title,
    interval_text,
    is_detail,
    metric_title,
    order,
    series_title,
    value_text,
)

MISSING = "\N{EN DASH}"
SYMBOLS = {
    "difference": "\N{DAGGER}",
    "restriction": "\N{DOUBLE DAGGER}",
    "source": "\N{SECTION SIGN}",
    "warning": "!",
}
MOST_OBSERVERS = 6  # of error consistency, as columns among the others
SEEDS_NOTE = "\N{PLUS-MINUS SIGN}: standard deviation over seeds (how many)."
PARTIAL_NOTE = "partial: measured on a part of the test set only; not to be compared with other values."


@dataclass(frozen=True)
class Note:
    """A sentence beneath the table.

    Attributes:
        kind: ``difference``, the value was measured otherwise than the others of its column; ``restriction``, its
            test set was cut down; ``source``, it was published and not measured here; ``warning``, it may mislead.
        text: the sentence.
    """

    kind: Literal["difference", "restriction", "source", "warning"]
    text: str


@dataclass(frozen=True)
class Column:
    """One measure.

    Attributes:
        dataset: title of the test set.
        title: title of the metric.
        unit: ``%`` for fractions, else the results' unit.
        group: what it stands under where columns have two headings: the test set, and for one eps of several the
            attack.
        head: what remains of the title then.
    """

    dataset: str
    title: str
    unit: str
    group: str
    head: str

    @property
    def is_attack(self) -> bool:
        """Whether it is one eps of an attack."""
        return self.group != self.dataset


@dataclass(frozen=True)
class Cell:
    """One value of the table.

    Attributes:
        text: what a reader sees; a percentage where the value is a fraction.
        result: the value itself.
        partial: whether only a part of the test set was seen.
        notes: numbers of the notes that hold for it.
        interval: its 95 % interval as a reader sees it; empty where it has none.
        spread: of a mean over seeds the standard deviation and how many, such as ``± 0.9 (3)``; else empty.
    """

    text: str
    result: Result
    partial: bool
    notes: tuple[int, ...]
    interval: str = ""
    spread: str = ""


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
        """Return a note's mark: dagger (difference), double dagger (restriction), section sign (source) or ! (warning).

        Numbered if there are several of a kind.
        """
        kind = self.notes[number].kind
        alike = [place for place, note in enumerate(self.notes) if note.kind == kind]
        return SYMBOLS[kind] + (str(alike.index(number) + 1) if len(alike) > 1 else "")

    def sentences(self) -> list[str]:
        """Return the sentences beneath the table, each behind its mark."""
        notes = [f"{self.mark(number)} {note.text}" for number, note in enumerate(self.notes)]
        cells = [cell for row in self.rows.values() for cell in row if cell]
        spans = ["[ ]: 95 % interval."] if any(cell.interval for cell in cells) else []
        seeds = [SEEDS_NOTE] if any(seeds_of(cell.result) for cell in cells) else []
        return notes + ([PARTIAL_NOTE] if self.has_partial else []) + spans + seeds

    def _number(self, note: Note) -> int:
        if note not in self.notes:
            self.notes.append(note)
        return self.notes.index(note)

    def add(self, found: Mapping[str, Result]) -> None:
        """Append a column: a run's label to its value, where it has one."""
        reference = usual(list(found.values()))
        owner = next(label for label, result in found.items() if result is reference)
        self.columns.append(_column(reference, dataset_title(reference.dataset, found.values())))
        for label, row in self.rows.items():
            result = found.get(label)
            if result is None:
                row.append(None)
                continue
            notes = []
            if other := differences(result, reference):
                notes.append(self._number(Note("difference", f"{other} (as for {owner}).")))
            if is_published(result):
                notes.append(self._number(Note("source", f"Published: {source_words(result)}.")))
            for text in limits(result):
                notes.append(self._number(Note("restriction", f"{dataset_title(result.dataset)}: {text}.")))
            for text in result.warnings:
                sentence = f"Warning: {dataset_title(result.dataset)}: {text.rstrip('.')}."
                notes.append(self._number(Note("warning", sentence)))
            text, interval = value_text(result.value, result.unit), interval_text(result)
            seeds, spread = seeds_of(result), ""
            if seeds:
                spread = f"\N{PLUS-MINUS SIGN} {value_text(seeds['sd'], result.unit)} ({seeds['count']})"
            row.append(Cell(text, result, is_partial(result), tuple(notes), interval, spread))


def _column(result: Result, dataset: str) -> Column:
    title = metric_title(result)
    unit = "%" if result.unit == "fraction" else result.unit
    if eps := eps_title(result):
        return Column(dataset, title, unit, f"{dataset}: {series_title(result)}", eps)
    return Column(dataset, title, unit, dataset, title)


def parts(columns: Sequence[Column], most: int) -> list[list[int]]:
    """Return the numbers of the columns in parts that fit next to each other.

    Where there is more than one part, columns of a group stay together as far as they fit, and attacks, which other
    runs may lack, stand apart from other measures.

    Args:
        columns: of a table.
        most: how many fit.
    """
    if len(columns) <= most:
        return [list(range(len(columns)))] if columns else []
    found: list[list[int]] = []
    for _, members in groupby(range(len(columns)), key=lambda number: columns[number].group):
        group = list(members)
        alike = bool(found) and columns[found[-1][-1]].is_attack == columns[group[0]].is_attack
        if not alike or len(found[-1]) + len(group) > most:
            # Of like width, so that no column stands alone.
            size = ceil(len(group) / ceil(len(group) / most))
            found += [group[start : start + size] for start in range(0, len(group), size)]
        else:
            found[-1] += group
    return found


def compare(runs: Mapping[str, RunResults]) -> Table:
    """Put runs side by side.

    Values of single categories, corruptions and severities are left to the figures and to the CSV, those of more than
    six observers to ``compare_observers``. A value measured
    otherwise than most of its column (or, without a majority, than the first) gets a dagger and a note that says in
    what it differs; a published one a section sign and its source.

    Args:
        runs: unique label to results, in the order of the rows.
    """
    apart = _stand_apart(runs)
    return _table(runs, lambda result: not is_detail(result) and not (apart and "observer" in result.facets))


def compare_observers(runs: Mapping[str, RunResults]) -> Table:
    """Put the runs' error consistency with single observers side by side; no columns where ``compare`` has them.

    Args:
        runs: unique label to results, in the order of the rows.
    """
    apart = _stand_apart(runs)
    return _table(runs, lambda result: apart and "observer" in result.facets)


def _stand_apart(runs: Mapping[str, RunResults]) -> bool:
    """Tell whether single observers have a table of their own: they are many, and not all there is."""
    found = {result.facets.get("observer") for run in runs.values() for result in run.results if not is_detail(result)}
    return None in found and len(found - {None}) > MOST_OBSERVERS


def _table(runs: Mapping[str, RunResults], belongs: Callable[[Result], bool]) -> Table:
    columns: dict[tuple[str, str, int], dict[str, Result]] = {}
    for label, found in runs.items():
        for result in filter(belongs, found.results):
            # Sets of one name and other classes are other sets; none of their values compare.
            dataset = dataset_title(result.dataset, [result])
            # Two attacks of one norm and eps share a key: the second gets a column of its own.
            turn = 0
            while label in columns.get((dataset, result.metric, turn), {}):
                turn += 1
            columns.setdefault((dataset, result.metric, turn), {})[label] = result
    table = Table([], {label: [] for label in runs})
    for _, column in sorted(columns.items(), key=_reading_order):
        table.add(column)
    return table


def _reading_order(column: tuple[tuple[str, str, int], Mapping[str, Result]]) -> tuple[object, ...]:
    """Return the sorting key of a column: sets of one name and other classes stand one after the other."""
    (dataset, _, _), found = column
    rank, name, *rest = order(next(iter(found.values())))
    return rank, name, dataset, *rest


def words(table: Table, cell: Cell | None) -> str:
    """Return what stands in a cell: the value, its notes' marks, and whether it is partial."""
    if cell is None:
        return MISSING
    span = [f"[{cell.interval}]"] if cell.interval else []
    return " ".join(
        [
            *filter(None, [cell.text, cell.spread]),
            *span,
            *map(table.mark, cell.notes),
            *(["(partial)"] if cell.partial else []),
        ]
    )
