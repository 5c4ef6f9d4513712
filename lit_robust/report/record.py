"""How each number was measured: every run's settings, versions, and the protocol of every value."""

import json
import math
from collections.abc import Mapping
from html import escape
from typing import Any

from lit_robust.core.results import Result
from lit_robust.report.markup import named, network, settings_list
from lit_robust.report.protocol import attack_settings, flat, plain
from lit_robust.report.runs import Run
from lit_robust.report.titles import UNDEFINED, dataset_title, metric_title, order

PRINTED = '<p class="printed">On paper are the runs that were unfolded on the screen; the page has all.</p>'
DRAWN = ("precision_recall",)  # long lists, which a plot shows


def record(runs: list[Run]) -> str:
    """Return a foldable block a run, with all that its results file tells; only those unfolded are printed."""
    return PRINTED + "".join(_run(number, run) for number, run in enumerate(runs))


def _run(number: int, run: Run) -> str:
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
    rows = "".join(_row(result, alike) for result in results)
    return (
        f"<h3>{escape(dataset_title(results[0].dataset, results) + name)}</h3>{settings_list(alike)}"
        '<div class="scroll" tabindex="0"><table class="record"><thead><tr><th scope="col">Measure</th>'
        '<th scope="col">Value</th><th scope="col">Unit</th><th scope="col">Images</th>'
        f'<th scope="col">Settings of this value</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(result: Result, alike: Mapping[str, Any]) -> str:
    value = f"{result.value:.6g}" if math.isfinite(result.value) else UNDEFINED
    own = [f"{key} {plain(value)}" for key, value in _told(result).items() if key not in alike]
    own += [f"warning: {warning}" for warning in result.warnings]
    return (
        f'<tr><th scope="row">{escape(metric_title(result))}</th><td>{value}</td><td>{escape(result.unit)}</td>'
        f"<td>{result.count:,}</td><td>{escape(', '.join(own))}</td></tr>"
    )
