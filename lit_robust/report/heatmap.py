"""Accuracy by corruption and severity: a table of tinted cells for each run."""

from collections.abc import Mapping
from html import escape

from lit_robust.core.results import Result, RunResults
from lit_robust.report.corruptions import (
    GROUPS,
    SEVERITIES,
    CorruptionValues,
    corrupted_sets,
    corruption_values,
    in_order,
)
from lit_robust.report.markup import named
from lit_robust.report.protocol import is_partial
from lit_robust.report.table import MISSING


def heat_maps(runs: Mapping[str, RunResults]) -> str:
    """Return every run's accuracies by corruption and severity as HTML; empty if no run has any.

    Numbers are percentages, and the darker a cell's tint, the higher. Where a run has accuracies over all severities
    alone, those stand in the last column.

    Args:
        runs: unique label to results, in the order of the page.
    """
    sets = corrupted_sets(runs)
    blocks = []
    for dataset, title in sets.items():
        maps = []
        for number, (label, found) in enumerate(runs.items()):
            values = corruption_values(found, dataset)
            if values.cells:
                maps.append(_heat_map(number, label, values))
        if maps:
            blocks.append(f'<h3>{escape(title)}: accuracy, %</h3><div class="heats">{"".join(maps)}</div>')
    return "".join(blocks)


def _heat_map(number: int, label: str, values: CorruptionValues) -> str:
    corruptions = in_order([*values.means, *(name for name, _ in values.cells)])
    firsts = {in_order(names)[0] for names in _groups(corruptions)}
    heads = "".join(f'<th scope="col">{severity}</th>' for severity in SEVERITIES)
    rows = "".join(_row(name, values, name in firsts) for name in corruptions)
    partial = any(is_partial(result) for result in (*values.cells.values(), *values.means.values()))
    tag = ' <span class="tag">partial</span>' if partial else ""
    return (
        f'<figure class="heat"><figcaption>{named(number, label)}{tag}</figcaption>'
        f'<table><thead><tr><th scope="col">severity</th>{heads}<th scope="col">mean</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></figure>"
    )


def _groups(corruptions: list[str]) -> list[list[str]]:
    known = [[name for name in names if name in corruptions] for names in GROUPS.values()]
    other = [name for name in corruptions if not any(name in names for names in GROUPS.values())]
    return [names for names in (*known, other) if names]


def _row(name: str, values: CorruptionValues, first: bool) -> str:
    cells = [values.cells.get((name, severity)) for severity in SEVERITIES]
    head = f'<th scope="row">{escape(name.replace("_", " "))}</th>'
    start = ' class="first"' if first else ""
    return f"<tr{start}>{head}{''.join(map(_cell, cells))}{_cell(values.means.get(name))}</tr>"


def _cell(result: Result | None) -> str:
    if result is None:
        return f'<td class="missing">{MISSING}</td>'
    share = 100 * min(max(result.value, 0.0), 1.0)
    title = f"{result.value:.6g} ({result.unit}), {result.count:,} images"
    return f'<td style="--share: {share:.1f}%" title="{escape(title)}">{100 * result.value:.0f}</td>'
