"""What the page consists of, from values to HTML: tables, legends, settings, images and the record of each run."""

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from lit_robust.core.results import Example, Result
from lit_robust.report.plots.drawing import mark_swatch, swatch
from lit_robust.report.protocol import attack_settings, flat, is_partial, plain
from lit_robust.report.runs import Run, read_picture
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


PRINTED = '<p class="printed">On paper are the runs that were unfolded on the screen; the page has all.</p>'
DRAWN = ("precision_recall",)  # long lists, which a plot shows


def record(runs: list[Run]) -> str:
    """Return a foldable block a run, with all that its results file tells; only those unfolded are printed."""
    return PRINTED + "".join(_run_record(number, run) for number, run in enumerate(runs))


def _run_record(number: int, run: Run) -> str:
    return (
        f"<details><summary>{named(number, run.label)} <small>{escape(network(run))}</small></summary>"
        f"{_about(run)}"
        f"{''.join(_protocol(results) for results in protocols(run.found.results))}</details>"
    )


def _about(run: Run) -> str:
    told = "" if run.published else f"<h3>Run</h3>{settings_list({'folder': run.folder.name, **run.found.run})}"
    return f"{told}<h3>Model</h3>{settings_list(run.found.model)}"


def protocols(results: list[Result]) -> list[list[Result]]:
    """Group results by test set, source, attack and threat model, as a reader wants their protocols told once.

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


MOST_EXAMPLES = 36
TITLES = {"adversarial": "clean and attacked", "cue-conflict": "shape against texture"}


def gallery(runs: list[Run]) -> str:
    """Return the runs' images, a foldable block a run; empty if no run kept any.

    Few runs show up to 12 examples of a kind each; many show fewer, or the page would not open on a phone. Where a
    file is missing, words stand in its place.

    Args:
        runs: the runs, in order.

    Raises:
        UserError: an image cannot be read, is not a PNG, or lies outside its run's folder.
    """
    limit = max(2, min(12, MOST_EXAMPLES // len(runs)))
    blocks = []
    for number, run in enumerate(runs):
        examples = sorted(run.found.examples, key=lambda example: (example.kind, example.dataset))
        if not examples:
            continue
        groups = groupby(examples, key=lambda example: (example.kind, example.dataset))
        inside = "".join(_group(run, *key, list(members), limit) for key, members in groups)
        unfolded = " open" if len(runs) <= 3 else ""
        blocks.append(
            f'<details class="gallery"{unfolded}><summary>{named(number, run.label)}</summary>{inside}</details>'
        )
    return "".join(blocks)


def _group(run: Run, kind: str, dataset: str, examples: list[Example], limit: int) -> str:
    shown = examples[:limit]
    amount = f"{len(shown)} of {len(examples)}" if len(shown) < len(examples) else str(len(examples))
    cards = "".join(_card(run, example) for example in shown)
    own = [result for result in run.found.results if result.dataset == dataset]
    title = f"{dataset_title(dataset, own)}: {TITLES.get(kind, kind)}"
    partial = ' <span class="tag">partial</span>' if any(map(is_partial, own)) else ""
    return f'<h3>{escape(title)} <small>{amount}</small>{partial}</h3><div class="cards">{cards}</div>'


def _card(run: Run, example: Example) -> str:
    pictures = "".join(_picture(run, example, role) for role in example.images)
    rest = [words if role == "label" else f"{role}: {words}" for role, words in example.captions.items()
            if role not in example.images]  # fmt: skip
    head = escape(", ".join([*rest, f"image {example.index}"]))
    wide = " pair" if len(example.images) > 1 else ""
    return f'<div class="card{wide}"><p>{head}</p><div>{pictures}</div></div>'


def _picture(run: Run, example: Example, role: str) -> str:
    words = example.captions.get(role, "")
    verdict = ""
    if words and "label" in example.captions:
        right = words == example.captions["label"]
        verdict = '<b class="right">\N{CHECK MARK}</b> ' if right else '<b class="wrong">\N{BALLOT X}</b> '
    name = f"<small>{escape(role)}</small> " if len(example.images) > 1 else ""
    caption = f"<figcaption>{name}{verdict}{escape(words)}</figcaption>"
    return f"<figure>{_image(run, example, role, words)}{caption}</figure>"


def _image(run: Run, example: Example, role: str, words: str) -> str:
    picture = read_picture(run, example.images[role])
    if picture is None:
        return f'<p class="gone">{escape(example.images[role])} is missing from the run\'s folder.</p>'
    # Small images are enlarged in whole pixels: smoothing would hide what an attack changed.
    sharp = ' class="pixels"' if picture.width < 128 else ""
    dataset = dataset_title(example.dataset, run.found.results)
    alternative = escape(f"{dataset}, image {example.index}, {role}: {words}")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{picture.uri}" {size} alt="{alternative}"{sharp}>'
