"""The page's table, legends and lists of settings, each from values to HTML."""

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from lit_robust.report.protocol import flat, plain
from lit_robust.report.runs import Run
from lit_robust.report.svg import mark_swatch, swatch
from lit_robust.report.table import MISSING, PARTIAL_NOTE, Cell, Table, parts


def swatch_style(published: Sequence[bool]) -> str:
    """Return the style rules that draw each run's line and mark, one class a run: ``run-0``, ``run-1``.

    Args:
        published: whether each run's values stem from publications, which have a mark and no line.
    """
    rules = []
    for number, is_published in enumerate(published):
        # As an image of its own, a mark's ids meet no others, wherever and how often it stands.
        picture = mark_swatch(number) if is_published else swatch(number)
        image = b64encode(picture.encode()).decode("ascii")
        rules.append(f".run-{number}::before {{ background-image: url(data:image/svg+xml;base64,{image}); }}")
    return "\n".join(rules)


def named(number: int, label: str) -> str:
    """Return a run's label behind its line and mark."""
    return f'<span class="run run-{number}">{escape(label)}</span>'


def legend(labels: Mapping[str, str], runs: list[str]) -> str:
    """Return a plot's legend.

    Args:
        labels: label of each run in the plot, to what stands after it.
        runs: all labels of the page, in order.
    """
    entries = (
        f"<li>{named(runs.index(label), label)}{f' <small>{escape(words)}</small>' if words else ''}</li>"
        for label, words in labels.items()
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def results_table(table: Table, runs: list[Run], most: int) -> str:
    """Return the comparison as HTML, with its notes beneath.

    Args:
        table: the comparison.
        runs: in the order of the rows.
        most: columns of one HTML table; more make several, each with the runs that have a value in it. Each lies in a
            box that scrolls.
    """
    return "".join(_part(table, runs, part) for part in parts(table.columns, most)) + _notes(table)


def _part(table: Table, runs: list[Run], part: list[int]) -> str:
    columns = [table.columns[number] for number in part]
    groups = [(name, len(list(members))) for name, members in groupby(column.group for column in columns)]
    sets = "".join(f'<th colspan="{width}" scope="colgroup">{escape(name)}</th>' for name, width in groups)
    heads = "".join(
        f'<th scope="col">{escape(column.head)} <small>{escape(column.unit)}</small></th>' for column in columns
    )
    cells = {run.label: [table.rows[run.label][number] for number in part] for run in runs}
    rows = "".join(
        f'<tr{_kind(run)}><th scope="row">{named(number, run.label)}<small>{escape(network(run))}</small></th>'
        f"{''.join(_cell(table, cell) for cell in cells[run.label])}</tr>"
        for number, run in enumerate(runs)
        if any(cells[run.label])
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table class="results">'
        f'<thead><tr><th rowspan="2" scope="col">Run</th>{sets}</tr><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _kind(run: Run) -> str:
    return ' class="published"' if run.published else ""


def network(run: Run) -> str:
    """Return a run's network and module, as far as its results file tells them; that it is published, if it is."""
    parts = ["published" if run.published else "", *(run.found.model.get(key) for key in ("network", "module"))]
    return " \N{MIDDLE DOT} ".join(str(part) for part in parts if part)


def _cell(table: Table, cell: Cell | None) -> str:
    if cell is None:
        return f'<td class="missing">{MISSING}</td>'
    marks = "".join(f"<sup>{escape(table.mark(number))}</sup>" for number in cell.notes)
    partial = '<span class="tag">partial</span>' if cell.partial else ""
    value, bar = cell.result.value, ""
    if cell.result.unit == "fraction" and math.isfinite(value):
        bar = f'<span class="bar" style="--share: {100 * min(max(value, 0.0), 1.0):.1f}%"></span>'
    exact = f"{value:.6g} ({cell.result.unit})" if math.isfinite(value) else "undefined"
    interval = cell.result.interval
    span = f", 95 % interval {interval[0]:.6g} to {interval[1]:.6g}" if interval else ""
    title = escape(f"{exact}{span}, {cell.result.count:,} images")
    return f'<td title="{title}"><span class="value">{escape(cell.text)}</span>{marks}{partial}{bar}</td>'


def _notes(table: Table) -> str:
    said = {
        number: f"<li><sup>{escape(table.mark(number))}</sup> {escape(note.text)}</li>"
        for number, note in enumerate(table.notes)
    }
    sources = [line for number, line in said.items() if table.notes[number].kind == "source"]
    others = [line for number, line in said.items() if table.notes[number].kind != "source"]
    if table.has_partial:
        word, rest = PARTIAL_NOTE.split(": ", 1)
        others.append(f'<li><span class="tag">{escape(word)}</span> {escape(rest)}</li>')
    lists = [f'<ul class="notes">{"".join(others)}</ul>'] if others else []
    if sources:
        title = f"<summary>Sources of the published values <small>{len(sources)}</small></summary>"
        lists.append(f'<details class="sources">{title}<ul class="notes">{"".join(sources)}</ul></details>')
    return "".join(lists)


def settings_list(settings: Mapping[str, Any]) -> str:
    """Return settings, nested ones flattened, as a list of names and values."""
    entries = (
        f"<div><dt>{escape(name)}</dt><dd>{_setting(value)}</dd></div>" for name, value in flat(settings).items()
    )
    return f'<dl class="settings">{"".join(entries)}</dl>'


def _setting(value: Any) -> str:
    words = plain(value)
    if len(words) <= 200:
        return escape(words)
    return f"<details><summary>{escape(words[:60])} \N{HORIZONTAL ELLIPSIS}</summary>{escape(words)}</details>"


def joined(words: Iterable[str]) -> str:
    """Return words as people list them.

    Example:
        >>> joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
