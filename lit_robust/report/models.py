"""What the runs' memory models are: one row a model."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lit_robust.report.markup import named
from lit_robust.report.protocol import plain
from lit_robust.report.runs import Run
from lit_robust.report.table import MISSING

MODULE = "CacheModule"
COLUMNS = {
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
        f'<tr><th scope="row">{named(number, run.label)}</th>{_cells(run.found.model)}</tr>'
        for number, run in enumerate(runs)
        if run.found.model.get("module") == MODULE
    ]
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in COLUMNS.values())
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of memory models"><table class="record">'
        f'<thead><tr><th scope="col">Run</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<ul class="notes"><li>\N{GREEK SMALL LETTER THETA} is the sharpness of the attention over the keys, k the '
        "number of nearest keys that are asked; continuous retrieval asks all.</li></ul>"
    )


def _cells(model: Mapping[str, Any]) -> str:
    facts = {**model, "backbone": model.get("backbone", model.get("network"))}
    return "".join(f"<td>{escape(_words(facts.get(key)))}</td>" for key in COLUMNS)


def _words(value: Any) -> str:
    if value is None or value in ([], {}):
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(_words(part) for part in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else plain(value)
