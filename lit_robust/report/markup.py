"""The page's table, legends and lists of settings, each from values to HTML."""

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from itertools import groupby
from typing import Any

from lit_robust.report.protocol import flat, plain
from lit_robust.report.runs import Run
from lit_robust.report.svg import swatch
from lit_robust.report.table import MISSING, PARTIAL_NOTE, Cell, Table


def swatch_style(count: int) -> str:
    """Return the style rules that draw each run's line and mark, one class a run: ``run-0``, ``run-1``."""
    rules = []
    for number in range(count):
        # As an image of its own, a mark's ids meet no others, wherever and how often it stands.
        image = b64encode(swatch(number).encode()).decode("ascii")
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


def results_table(table: Table, runs: list[Run]) -> str:
    """Return the comparison as an HTML table in a box that scrolls, with its notes beneath."""
    groups = [(name, len(list(columns))) for name, columns in groupby(column.dataset for column in table.columns)]
    sets = "".join(f'<th colspan="{width}" scope="colgroup">{escape(name)}</th>' for name, width in groups)
    heads = "".join(
        f'<th scope="col">{escape(column.title)} <small>{escape(column.unit)}</small></th>' for column in table.columns
    )
    rows = "".join(
        f'<tr><th scope="row">{named(number, run.label)}<small>{escape(network(run))}</small></th>'
        f"{''.join(_cell(table, cell) for cell in table.rows[run.label])}</tr>"
        for number, run in enumerate(runs)
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table class="results">'
        f'<thead><tr><th rowspan="2" scope="col">Run</th>{sets}</tr><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_notes(table)}"
    )


def network(run: Run) -> str:
    """Return a run's network and module, as far as its results file tells them."""
    parts = (run.found.model.get(key) for key in ("network", "module"))
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
    title = escape(f"{exact}, {cell.result.count:,} images")
    return f'<td title="{title}"><span class="value">{escape(cell.text)}</span>{marks}{partial}{bar}</td>'


def _notes(table: Table) -> str:
    notes = [
        f"<li><sup>{escape(table.mark(number))}</sup> {escape(note.text)}</li>"
        for number, note in enumerate(table.notes)
    ]
    if table.has_partial:
        word, rest = PARTIAL_NOTE.split(": ", 1)
        notes.append(f'<li><span class="tag">{escape(word)}</span> {escape(rest)}</li>')
    return f'<ul class="notes">{"".join(notes)}</ul>' if notes else ""


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
