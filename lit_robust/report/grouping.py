"""Runs that differ in nothing but their seed, as one row: mean, standard deviation and how many."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults
from lit_robust.report.runs import Run, unique_labels

CONFIG = "config-fit.yaml"
SEEDS = "seeds"
# Of a network, what another seed changes.
CHANGED = ("weights", "weights_sha256", "keys_sha256", "memory_images")
PLACES = ("default_root_dir", "logger", "callbacks")  # Of a configuration's trainer: where a run writes.


def grouped(runs: Sequence[Run]) -> list[Run]:
    """Return runs with those that differ in their seed alone joined, each group where its first run stood.

    A training's configuration tells, where ``config-fit.yaml`` lies in the run's folder, and what the results say of
    the network. A value of a group is the mean of its runs; its protocol's ``seeds`` has their ``count`` and the
    standard deviation ``sd`` (n - 1). What a run of the group lacks, or has as not a number, is left out.

    Args:
        runs: measured ones; published ones stay as they are.

    Raises:
        UserError: a configuration cannot be read.
    """
    groups: dict[str, list[Run]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(str(number) if run.published else _identity(run), []).append(run)
    joined = [_joined(members) if len(members) > 1 else members[0] for members in groups.values()]
    labels = unique_labels([run.label for run in joined], [run.folder for run in joined])
    return [Run(label, run.folder, run.found, run.published) for label, run in zip(labels, joined, strict=True)]


def _identity(run: Run) -> str:
    """Return all that two runs of one group have in common, as text."""
    model = {name: value for name, value in run.found.model.items() if name not in CHANGED}
    file = run.folder / CONFIG
    config = _config(file) if file.is_file() else None
    return json.dumps([model, config], sort_keys=True, default=str)


def _config(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file} cannot be read ({' '.join(str(error).split())}): copy a run's whole folder."
        ) from error
    kept = {key: value for key, value in content.items() if key not in ("seed_everything", "ckpt_path")}
    kept["trainer"] = {key: value for key, value in content.get("trainer", {}).items() if key not in PLACES}
    return kept


def _joined(members: Sequence[Run]) -> Run:
    tables = [{result.key: result for result in run.found.results} for run in members]
    shared = [key for key in tables[0] if all(key in table and math.isfinite(table[key].value) for table in tables)]
    results = [_mean([table[key] for table in tables]) for key in shared]
    first = members[0].found
    model = {name: value for name, value in first.model.items() if name not in CHANGED}
    name = _name([run.label for run in members])
    seeds = [run.found.run.get("seed") for run in members]
    facts = {"name": name, "runs": [run.label for run in members], "seeds": seeds}
    return Run(name, members[0].folder, RunResults(facts, model, results, first.examples))


def _name(labels: Sequence[str]) -> str:
    """Return what the names of a group's runs begin with; the first's where that is nothing.

    Example:
        >>> _name(["madry-seed10", "madry-seed11"]), _name(["resnet50-0", "resnet50-1"]), _name(["a (x/0)", "a (x/1)"])
        ('madry', 'resnet50', 'a')
        >>> _name(["a", "b"])
        'a and 1 more'
    """
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*labels, strict=False))
    start = "".join(letters[0] for letters in alike)
    if any(label[len(start) :][:1].isdigit() for label in labels):
        start = start.rstrip("0123456789")  # Of a number that goes on, the beginning says nothing.
    start = start.rpartition(" (")[0] or start if ")" not in start.rpartition(" (")[2] else start
    start = start.rstrip("-_ (").removesuffix("seed").rstrip("-_ ")
    return start or f"{labels[0]} and {len(labels) - 1} more"


def _mean(results: Sequence[Result]) -> Result:
    first = results[0]
    protocol = {
        key: value for key, value in first.protocol.items() if all(r.protocol.get(key) == value for r in results)
    }
    protocol.pop("interval", None)
    protocol[SEEDS] = {"count": len(results), "sd": stdev(result.value for result in results)}
    warnings = tuple(dict.fromkeys(warning for result in results for warning in result.warnings))
    value = mean(result.value for result in results)
    return Result(first.dataset, first.metric, value, first.unit, first.count, protocol, None, first.facets, warnings)


def ends_of(result: Result) -> tuple[float, float] | None:
    """Return the ends of what a plot draws around a value: its interval; of a mean over seeds, the deviation."""
    seeds = seeds_of(result)
    return (result.value - seeds["sd"], result.value + seeds["sd"]) if seeds else result.interval


def ends_words(results: Iterable[Result], lines: str) -> str:
    """Return the sentences of a caption that say what the lines around its values are; empty where there are none.

    Args:
        results: what is drawn.
        lines: such as ``Vertical lines``.
    """
    drawn = list(results)
    kinds = ["95 % intervals"] if any(result.interval and not seeds_of(result) for result in drawn) else []
    kinds += ["standard deviations over seeds"] if any(map(seeds_of, drawn)) else []
    return f" {lines} are {' or, of means, '.join(kinds)}." if kinds else ""


def seeds_of(result: Result) -> Mapping[str, Any]:
    """Return ``count`` and ``sd`` of a value that is a mean over seeds; empty for others."""
    seeds = result.protocol.get(SEEDS)
    return seeds if isinstance(seeds, Mapping) and {"count", "sd"} <= seeds.keys() else {}
