"""Every value of the runs as comma-separated text."""

import csv
import json
import math
from collections.abc import Mapping
from io import StringIO

from lit_robust.core.results import RunResults
from lit_robust.report.protocol import is_partial

HEADER = ("run", "dataset", "metric", "value", "unit", "count", "partial", "published", "protocol")


def csv_text(runs: Mapping[str, RunResults]) -> str:
    """Return every value, one a line, as the results files have them: fractions, nothing rounded.

    Columns are run, dataset, metric, value (empty where undefined), unit, count, partial (``yes`` or empty), published
    (its source, or empty), and the protocol as JSON.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for label, found in runs.items():
        for result in found.results:
            value = "" if math.isnan(result.value) else repr(result.value)
            partial = "yes" if is_partial(result) else ""
            source, protocol = result.protocol.get("published", ""), json.dumps(dict(result.protocol))
            measured = [label, result.dataset, result.metric, value, result.unit, result.count]
            writer.writerow([*measured, partial, source, protocol])
    return text.getvalue()
