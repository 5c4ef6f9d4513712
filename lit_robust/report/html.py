"""What the page consists of, from values to HTML: tables, legends, settings, images and the record of each run."""

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from lit_robust.core.results import Result
from lit_robust.report.grouping import ends_of
from lit_robust.report.plots.drawing import mark_swatch, swatch
from lit_robust.report.protocol import attack_settings, flat, plain
from lit_robust.report.runs import Run
from lit_robust.report.table import MISSING, PARTIAL_NOTE, Cell, Table, parts
from lit_robust.report.titles import UNDEFINED, dataset_title, metric_title, order


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


def results_table(table: Table, runs: list[Run], most: int, dataset: str | None = None) -> str:
    """Return the comparison as HTML, with its notes beneath.

    Args:
        table: the comparison.
        runs: in the order of the rows.
        most: columns of one HTML table; more make several, each with the runs that have a value in it. Each lies in a
            box that scrolls.
        dataset: title of the test set whose columns alone are wanted; null for all.
    """
    wanted = [number for number, column in enumerate(table.columns) if dataset in (None, column.dataset)]
    groups = [[wanted[place] for place in part] for part in parts([table.columns[n] for n in wanted], most)]
    return "".join(_part(table, runs, part, dataset) for part in groups) + notes(table, wanted)


def _part(table: Table, runs: list[Run], part: list[int], dataset: str | None) -> str:
    columns = [table.columns[number] for number in part]
    groups = [(name, len(list(members))) for name, members in groupby(column.group for column in columns)]
    # Under the heading of a set its name is not said again.
    said = [(name.removeprefix(f"{dataset}: ") if name != dataset else "", width) for name, width in groups]
    sets = "".join(f'<th colspan="{width}" scope="colgroup">{escape(name)}</th>' for name, width in said)
    heads = "".join(
        f'<th scope="col">{escape(column.head)} <small>{escape(column.unit)}</small></th>' for column in columns
    )
    head = f'<tr><th rowspan="2" scope="col">Run</th>{sets}</tr><tr>{heads}</tr>'
    if not any(name for name, _ in said):
        head = f'<tr><th scope="col">Run</th>{heads}</tr>'
    cells = {run.label: [table.rows[run.label][number] for number in part] for run in runs}
    scales = [bar_scale([row[place] for row in cells.values()]) for place in range(len(part))]
    rows = "".join(
        f"<tr{row_class(run)}>{run_head(number, run)}"
        f"{''.join(value_cell(table, cell, scale) for cell, scale in zip(cells[run.label], scales, strict=True))}</tr>"
        for number, run in enumerate(runs)
        if any(cells[run.label])
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table class="results">'
        f"<thead>{head}</thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def run_head(number: int, run: Run) -> str:
    """Return the first cell of a run's row: its name, and what network it is."""
    # Where it is too long for a line it breaks at a stroke.
    what = escape(network(run)).replace("/", "/<wbr>")
    return f'<th scope="row">{named(number, run.label)}<small>{what}</small></th>'


def bar_scale(cells: Iterable[Cell | None]) -> float:
    """Return what a whole bar of a column stands for: 1, or the largest corruption error above it."""
    return max([1.0, *(cell.result.value for cell in cells if cell and math.isfinite(cell.result.value))])


def row_class(run: Run) -> str:
    """Return what marks the row of a published network; empty for a run."""
    return ' class="published"' if run.published else ""


def network(run: Run) -> str:
    """Return a run's network and module, as far as its results file tells them; that it is published, if it is."""
    parts = ["published" if run.published else "", *(run.found.model.get(key) for key in ("network", "module"))]
    return " \N{MIDDLE DOT} ".join(str(part) for part in parts if part)


def value_cell(
    table: Table, cell: Cell | None, scale: float = 1.0, best: bool = False, marks: Mapping[str, float] | None = None
) -> str:
    """Return a value as a cell: with its interval, its notes' marks, and for a fraction a bar.

    Args:
        table: whose notes the marks are of.
        cell: the value; None where the run lacks it.
        scale: what a whole bar stands for.
        best: whether to set it in bold.
        marks: name to value of what stands as a tick on the bar, such as chance.
    """
    if cell is None:
        return f'<td class="missing">{MISSING}</td>'
    raised = "".join(f"<sup>{escape(table.mark(number))}</sup>" for number in cell.notes)
    partial = '<span class="tag">partial</span>' if cell.partial else ""
    value, interval, bar = cell.result.value, cell.result.interval, ""
    if cell.result.unit == "fraction" and 0 <= value < math.inf:
        ends = ends_of(cell.result) or (value, value)
        low, share, high = (100 * min(max(part / scale, 0.0), 1.0) for part in (ends[0], value, ends[1]))
        ticks = "".join(
            f'<i style="--at: {100 * at / scale:.1f}%" title="{escape(name)} {100 * at:.4g}"></i>'
            for name, at in (marks or {}).items()
        )
        style = f"--share: {share:.1f}%; --low: {low:.1f}%; --high: {high:.1f}%"
        bar = f'<span class="bar" style="{style}">{ticks}</span>'
    exact = f"{value:.6g} ({cell.result.unit})" if math.isfinite(value) else "undefined"
    span = f", 95 % interval {interval[0]:.6g} to {interval[1]:.6g}" if interval else ""
    title = escape(f"{exact}{span}, {cell.result.count:,} images")
    words = f'<b class="value">{escape(cell.text)}</b>' if best else f'<span class="value">{escape(cell.text)}</span>'
    around = cell.spread or cell.interval
    small = f'<small class="interval">{escape(around)}</small>' if around else ""
    return f'<td title="{title}">{words}{raised}{small}{partial}{bar}</td>'


def notes(table: Table, columns: Sequence[int] | None = None) -> str:
    """Return the notes of a table as lists; of some columns alone where they are named."""
    chosen = range(len(table.columns)) if columns is None else columns
    cells = [row[place] for row in table.rows.values() for place in chosen]
    used = {number for cell in cells if cell for number in cell.notes}
    said = {
        number: f"<li><sup>{escape(table.mark(number))}</sup> {escape(note.text)}</li>"
        for number, note in enumerate(table.notes)
        if number in used
    }
    kinds = {number: table.notes[number].kind for number in said}
    sources = [line for number, line in said.items() if kinds[number] == "source"]
    warnings = [line for number, line in said.items() if kinds[number] == "warning"]
    others = [line for number, line in said.items() if kinds[number] not in ("source", "warning")]
    if any(cell.partial for cell in cells if cell):
        word, rest = PARTIAL_NOTE.split(": ", 1)
        others.append(f'<li><span class="tag">{escape(word)}</span> {escape(rest)}</li>')
    lists = [f'<ul class="notes warnings">{"".join(warnings)}</ul>'] if warnings else []
    lists += [f'<ul class="notes">{"".join(others)}</ul>'] if others else []
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


PRINTED = '<p class="printed">On paper are the runs that were unfolded on the screen; the page has all.</p>'
UNFOLDED = 2  # runs
DRAWN = ("precision_recall",)  # long lists, which a plot shows


def record(runs: list[Run]) -> str:
    """Return a foldable block a run, with all that its results file tells; only those unfolded are printed.

    One or two are unfolded from the beginning, so that whoever prints a page without a look at it has them.
    """
    is_open = len(runs) <= UNFOLDED
    blocks = (_run_record(number, run, is_open) for number, run in enumerate(runs))
    return ("" if is_open else PRINTED) + "".join(blocks)


def _run_record(number: int, run: Run, is_open: bool) -> str:
    words = f"{named(number, run.label)} <small>{escape(network(run))}</small>"
    return (
        f"<details{' open' if is_open else ''}><summary>{words}</summary>"
        f"{_about(run)}"
        f"{''.join(_protocol(results) for results in protocols(run.found.results))}</details>"
    )


def _about(run: Run) -> str:
    run_part = "" if run.published else f"<h3>Run</h3>{settings_list({'folder': run.folder.name, **run.found.run})}"
    return f"{run_part}<h3>Model</h3>{settings_list(run.found.model)}"


def protocols(results: list[Result]) -> list[list[Result]]:
    """Group results by test set, source, attack and threat model, so that their protocols stand once.

    Those of single corruptions are left to the heat map and to the CSV.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in sorted((result for result in results if "corruption" not in result.facets), key=order):
        attack = json.dumps(attack_settings(result), sort_keys=True, default=str)
        origin = (str(result.protocol.get(key, "")) for key in ("published", "threat_model"))
        groups.setdefault((result.dataset, attack, *origin), []).append(result)
    return list(groups.values())


def shared(results: list[Result]) -> dict[str, Any]:
    """Return the settings, on one level, that all of ``results`` have alike."""
    first, *others = (_told(result) for result in results)
    return {key: value for key, value in first.items() if all(o.get(key, math.nan) == value for o in others)}


def _told(result: Result) -> dict[str, Any]:
    return flat({key: value for key, value in result.protocol.items() if key not in DRAWN})


def _protocol(results: list[Result]) -> str:
    alike = shared(results)
    attack = results[0].protocol.get("attack")
    parts = (
        [attack.get("name", "attack"), results[0].protocol.get("threat_model")] if isinstance(attack, Mapping) else []
    )
    name = "".join(f", {part}" for part in parts if part)
    rows = "".join(_value_row(result, alike) for result in results)
    return (
        f"<h3>{escape(dataset_title(results[0].dataset, results) + name)}</h3>{settings_list(alike)}"
        '<div class="scroll" tabindex="0"><table class="record"><thead><tr><th scope="col">Measure</th>'
        '<th scope="col">Value</th><th scope="col">Unit</th><th scope="col">Images</th>'
        f'<th scope="col">Settings of this value</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _value_row(result: Result, alike: Mapping[str, Any]) -> str:
    value = f"{result.value:.6g}" if math.isfinite(result.value) else UNDEFINED
    own = [f"{key} {plain(value)}" for key, value in _told(result).items() if key not in alike]
    own += [f"warning: {warning}" for warning in result.warnings]
    return (
        f'<tr><th scope="row">{escape(metric_title(result))}</th><td>{value}</td><td>{escape(result.unit)}</td>'
        f"<td>{result.count:,}</td><td>{escape(', '.join(own))}</td></tr>"
    )


MODULE = "CacheModule"
MEMORY_COLUMNS = {
    "backbone": "Backbone",
    "layer": "Layer",
    "retrieval": "Retrieval",
    "theta": "\N{GREEK SMALL LETTER THETA}",
    "k": "k",
    "keys": "Keys",
    "dimensions": "Dimensions",
    "compression": "Compression",
}


def memory_models(runs: Sequence[Run]) -> str:
    """Return a table of the memory models among the runs as HTML; empty if there are none.

    Args:
        runs: all runs of the page, whose places settle their marks.
    """
    rows = [
        f'<tr><th scope="row">{named(number, run.label)}</th>{_memory_cells(run.found.model)}</tr>'
        for number, run in enumerate(runs)
        if run.found.model.get("module") == MODULE
    ]
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in MEMORY_COLUMNS.values())
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of memory models"><table class="record">'
        f'<thead><tr><th scope="col">Run</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<ul class="notes"><li>\N{GREEK SMALL LETTER THETA} is the temperature of the attention over the keys, k the '
        "number of nearest keys that are asked; continuous retrieval asks all.</li></ul>"
    )


def _memory_cells(model: Mapping[str, Any]) -> str:
    facts = {**model, "backbone": model.get("backbone", model.get("network"))}
    return "".join(f"<td>{escape(_memory_words(facts.get(key)))}</td>" for key in MEMORY_COLUMNS)


def _memory_words(value: Any) -> str:
    if value is None or value in ([], {}):
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_memory_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(_memory_words(part) for part in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else plain(value)
