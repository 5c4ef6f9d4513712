"""Every value of the runs as comma-separated text."""

import csv
import json
import math
from collections.abc import Mapping
from io import StringIO

from lit_robust.core.results import RunResults
from lit_robust.report.protocol import is_partial

HEADER = (
    "run", "dataset", "metric", "value", "unit", "count", "low", "high", "partial", "published", "warnings", "facets",
    "protocol",
)  # fmt: skip


def csv_text(runs: Mapping[str, RunResults]) -> str:
    """Return every value, one a line, as the results files have them: fractions, nothing rounded.

    A word that a spreadsheet would run as a formula has an apostrophe before it. Columns are run, dataset, metric,
    value (empty where undefined), unit, count, low and high (the ends of a 95 % interval, or empty), partial (``yes``
    or empty), published (its source, or empty), warnings (sentences), and the facets and the protocol as JSON.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for label, found in runs.items():
        for result in found.results:
            value = "" if math.isnan(result.value) else repr(result.value)
            partial = "yes" if is_partial(result) else ""
            interval = ["", ""] if result.interval is None else [repr(end) for end in result.interval]
            warnings = " ".join(f"{warning.rstrip('.')}." for warning in result.warnings)
            source = result.protocol.get("published", "")
            told = [warnings, json.dumps(dict(result.facets)), json.dumps(dict(result.protocol))]
            names = [inert(label), inert(result.dataset), inert(result.metric)]
            measured = [value, inert(result.unit), result.count, *interval, partial]
            writer.writerow([*names, *measured, *map(inert, [str(source), *told])])
    return text.getvalue()


def inert(word: str) -> str:
    """Return a word that no spreadsheet takes for a formula.

    Example:
        >>> inert("=1+1"), inert("top1")
        ("'=1+1", 'top1')
    """
    return f"'{word}" if word.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else word
