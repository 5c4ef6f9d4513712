"""A board: many results files as one sortable table, a row a network; as one page, as CSV or as JSON."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any

import lit_robust
from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.core.results import Result
from lit_robust.report.grouping import grouped, seeds_of
from lit_robust.report.html import bar_scale, notes, row_class, value_cell
from lit_robust.report.plots.accuracy import training_strength
from lit_robust.report.plots.drawing import COLOURS
from lit_robust.report.published import published_runs
from lit_robust.report.runs import Run, load_runs
from lit_robust.report.scorecard import ARROWS, CardColumn, card_columns
from lit_robust.report.table import Column, Table, compare
from lit_robust.report.text import inert
from lit_robust.report.titles import NORM_TITLES, eps_text

TRAININGS = {
    "StandardModule": "standard",
    "AdversarialModule": "adversarial",
    "TradesModule": "TRADES",
    "AdvPropModule": "AdvProp",
    "AugMixModule": "AugMix",
    "CacheModule": "cache",
}
NOT_SAID, PUBLISHED = "not said", "published"


@dataclass(frozen=True)
class BoardColumn:
    """One column of a board.

    Attributes:
        name: by which it is chosen: that of a score, such as ``clean``, else ``<dataset>/<metric>``.
        title: for a reader.
        detail: what the title leaves open; may be empty.
        better: 1 where more is better, -1 where less is, 0 where nobody says.
        column: of the table.
        best: labels of the runs with the best value.
        marks: name to what a value is held against.
    """

    name: str
    title: str
    detail: str
    better: int
    column: Column
    best: frozenset[str]
    marks: Mapping[str, float]


@dataclass(frozen=True)
class Board:
    """Runs as rows, measures as columns.

    Attributes:
        runs: in the order given, published ones last.
        columns: in the order of the table's.
        table: every value, with its notes.
        shown: names of the columns to see at first.
    """

    runs: Sequence[Run]
    columns: Sequence[BoardColumn]
    table: Table
    shown: Sequence[str]


def board_of(runs: Sequence[Run], columns: Sequence[str] = ()) -> Board:
    """Put runs on a board: the score card's columns first, then every other measure that is not a detail.

    Args:
        runs: measured and published ones.
        columns: names of those to see at first, in this order; none for the score card's.

    Raises:
        UserError: there is no column of a name.
    """
    card = card_columns(runs)
    taken = {id(result) for one in card for result in one.found.values()}
    other = compare({run.label: run.found for run in runs})
    table, found = Table([], {run.label: [] for run in runs}), []
    for one in card:
        table.add(one.found)
        found.append(_of_card(one, table.columns[-1]))
    for place in range(len(other.columns)):
        cells = {label: row[place] for label, row in other.rows.items()}
        values = {label: cell.result for label, cell in cells.items() if cell is not None}
        if any(id(result) not in taken for result in values.values()):
            table.add(values)
            first = next(iter(values.values()))
            found.append(_of_measure(first, table.columns[-1], {one.name for one in found}))
    known = [one.name for one in found]
    for name in columns:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the runs have {', '.join(known)}."
            raise UserError(f"There is no column {name!r} of the board: {hint}")
    return Board(runs, found, table, list(dict.fromkeys(columns)) or known[: len(card)] or known)


def _of_card(one: CardColumn, column: Column) -> BoardColumn:
    score = one.score
    return BoardColumn(score.name, score.title, one.detail, score.better, column, one.best, one.marks)


def _of_measure(result: Result, column: Column, taken: set[str]) -> BoardColumn:
    name = plain = f"{result.dataset}/{result.metric}"
    number = 1
    while name in taken:
        number += 1
        name = f"{plain}#{number}"
    return BoardColumn(name, column.title, column.dataset, 0, column, frozenset(), {})


def training_of(run: Run) -> str:
    """Return how a network was trained, as its results file tells: its family on the board.

    Example:
        >>> from lit_robust.core.results import RunResults
        >>> trained = {"module": "StandardModule", "settings": {"mixing": {"class_path": "lit_robust.modules.Mixup"}}}
        >>> training_of(Run("a", Path(), RunResults({}, trained, [])))
        'Mixup'
    """
    if run.published:
        return PUBLISHED
    settings = run.found.model.get("settings")
    mixing = settings.get("mixing") if isinstance(settings, Mapping) else None
    if isinstance(mixing, Mapping) and mixing.get("class_path"):
        return str(mixing["class_path"]).rsplit(".", 1)[-1]
    return TRAININGS.get(str(run.found.model.get("module")), NOT_SAID)


def attack_of_training(run: Run) -> str:
    """Return norm and eps of the attack that a network was trained by, such as ``L2, eps 3``; empty without one."""
    strength = training_strength(run.found)
    if strength is None:
        return ""
    norm, eps = strength
    return f"{NORM_TITLES.get(norm, norm)}, eps {eps_text(norm, eps)}"


def board_csv(board: Board) -> str:
    """Return the columns shown, a row a run; fractions are fractions, nothing is rounded, what a run lacks is empty.

    Next to each measure are the ends of its 95 % interval, a mean's standard deviation over seeds, and its count.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [f"{name}{end}" for name in board.shown for end in ("", " low", " high", " sd", " count")]
    writer.writerow(["run", "network", "training", "attack of training", *heads])
    for row in board_rows(board):
        texts = [inert(str(row[name])) for name in ("run", "network", "training", "attack_of_training")]
        cells = [_csv_cells(row["values"].get(name)) for name in board.shown]
        writer.writerow([*texts, *(cell for part in cells for cell in part)])
    return text.getvalue()


def _csv_cells(value: Mapping[str, Any] | None) -> list[Any]:
    if value is None:
        return [""] * 5
    spread = value["seeds"]["sd"] if value["seeds"] else ""
    return ["" if value["value"] is None else value["value"], *(value["interval"] or ("", "")), spread, value["count"]]


def board_rows(board: Board) -> list[dict[str, Any]]:
    """Return each run as plain values: what it is, and ``values``, a column's name to value, interval and notes."""
    rows = []
    for run in board.runs:
        values = {}
        for column, cell in zip(board.columns, board.table.rows[run.label], strict=True):
            if cell is not None:
                one = cell.result
                values[column.name] = {
                    "value": one.value if math.isfinite(one.value) else None,
                    "interval": None if one.interval is None else list(one.interval),
                    "seeds": dict(seeds_of(one)),
                    "count": one.count,
                    "partial": cell.partial,
                    "notes": [board.table.notes[number].text for number in cell.notes],
                }
        rows.append(
            {
                "run": run.label,
                "network": str(run.found.model.get("network", "")),
                "training": training_of(run),
                "attack_of_training": attack_of_training(run),
                "weights_sha256": run.found.model.get("weights_sha256"),
                "values": values,
            }
        )
    return rows


def board_json(board: Board) -> str:
    """Return all columns and rows as JSON; ``shown`` names the columns to see at first."""
    columns = [
        {
            "name": one.name,
            "title": one.title,
            "detail": one.detail,
            "unit": "fraction" if one.column.unit == "%" else one.column.unit,
            "better": one.better,
        }
        for one in board.columns
    ]
    content = {
        "written_by": f"lit_robust {lit_robust.__version__}",
        "shown": list(board.shown),
        "columns": columns,
        "rows": board_rows(board),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def board_page(board: Board) -> str:
    """Return the board as HTML, which fetches nothing: sorted by a click, filtered by words and by training.

    Without JavaScript it is the table as it stands.
    """
    folder = files("lit_robust.report")
    shown = [place for name in board.shown for place, one in enumerate(board.columns) if one.name == name]
    rest = [place for place in range(len(board.columns)) if place not in shown]
    order = [*shown, *rest]
    trainings = list(dict.fromkeys(map(training_of, board.runs)))
    colours = {kind: COLOURS[place % len(COLOURS)] for place, kind in enumerate(trainings)}
    scales = [bar_scale([row[place] for row in board.table.rows.values()]) for place in range(len(board.columns))]
    counts = [sum(row[place] is not None for row in board.table.rows.values()) for place in range(len(board.columns))]
    measured = sum(not run.published for run in board.runs)
    return Template((folder / "board.html").read_text(encoding="utf-8")).substitute(
        title=f"{measured} network{'' if measured == 1 else 's'} compared",
        style=(folder / "page.css").read_text(encoding="utf-8") + (folder / "board.css").read_text(encoding="utf-8"),
        script=(folder / "board.js").read_text(encoding="utf-8"),
        kinds="".join(
            f'<label><input type="checkbox" class="kind" value="{escape(kind)}" checked> {_dot(colours[kind])}'
            f"{escape(kind)}</label>"
            for kind in trainings
        ),
        choices="".join(
            f'<label><input type="checkbox" class="column" value="{place}"{" checked" if place in shown else ""}> '
            f"{escape(_named(board.columns[place]))} <small>{counts[place]} rows</small></label>"
            for place in order
        ),
        heads="".join(_head(board.columns[place], place, place in shown) for place in order),
        rows="\n".join(_row(board, run, order, shown, scales, colours) for run in board.runs),
        notes=notes(board.table),
        version=escape(lit_robust.__version__),
    )


def _named(one: BoardColumn) -> str:
    return f"{one.title}, {one.detail}" if one.detail else one.title


def _dot(colour: str) -> str:
    return f'<i class="dot" style="--colour: {colour}"></i>'


def _head(one: BoardColumn, place: int, is_shown: bool) -> str:
    hidden = "" if is_shown else " hidden"
    word = {1: "more is better", -1: "less is better", 0: ""}[one.better]
    arrow = f'&nbsp;<span class="arrow" title="{word}">{ARROWS[one.better]}</span>' if word else ""
    unit = "" if one.column.unit == "%" else f"<small>{escape(one.column.unit)}</small>"
    return (
        f'<th scope="col" data-column="{place}"{hidden}><button type="button" data-better="{one.better}">'
        f"{escape(one.title)}{arrow}</button><small>{escape(one.detail)}</small>{unit}</th>"
    )


def _row(
    board: Board, run: Run, order: Sequence[int], shown: Sequence[int], scales: Sequence[float], colours: dict[str, str]
) -> str:
    row, kind, network = board.table.rows[run.label], training_of(run), str(run.found.model.get("network", ""))
    cells = []
    for place in order:
        cell, one = row[place], board.columns[place]
        value = "" if cell is None or not math.isfinite(cell.result.value) else f"{cell.result.value!r}"
        ends = "" if cell is None or cell.result.interval is None else " ".join(map(repr, cell.result.interval))
        attributes = f'data-column="{place}" data-value="{value}" data-interval="{ends}"' + (
            "" if place in shown else " hidden"
        )
        html = value_cell(board.table, cell, scales[place], run.label in one.best, one.marks)
        cells.append(html.replace("<td", f"<td {attributes}", 1))
    trained = ", ".join(filter(None, [kind, attack_of_training(run)]))
    return (
        f'<tr{row_class(run)} data-kind="{escape(kind)}"><th scope="row" data-value="{escape(run.label)}">'
        f'{_dot(colours[kind])}{escape(run.label)}</th><td class="word" data-value="{escape(network)}">'
        f'{escape(network)}</td><td class="word" data-value="{escape(trained)}">{escape(trained)}</td>'
        f"{''.join(cells)}</tr>"
    )


# What each suffix stands for.
WRITERS: dict[str, Callable[[Board], str]] = {".html": board_page, ".csv": board_csv, ".json": board_json}


def write_board(
    runs: Sequence[Path],
    output: Path,
    columns: Sequence[str] = (),
    published: Sequence[str] = (),
    group: bool = False,
) -> Path:
    """Put many runs on one board, in one file, whose suffix says what is wanted.

    Args:
        runs: run folders, or results files.
        output: ``.html`` for a page that holds all it needs, ``.csv`` for the columns chosen, ``.json`` for all.
        columns: those to see at first, such as ``clean`` or ``imagenet-c/mce``; none for the score card's.
        published: see ``write_report``.
        group: see ``write_report``.

    Returns:
        ``output``.

    Raises:
        UserError: no run is named, one cannot be read, a name is not known, or the suffix is another.
    """
    if (suffix := output.suffix.lower()) not in WRITERS:
        raise UserError(f"The board {output} has no known suffix: name a file that ends in {', '.join(WRITERS)}.")
    measured = grouped(load_runs(runs)) if group else load_runs(runs)
    text = WRITERS[suffix](board_of([*measured, *published_runs(published, measured)], columns))
    write_text(output, text.encode("utf-8", "backslashreplace").decode())
    return output
