"""Published values next to measured ones: reading them, and choosing those that fit the runs' columns."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults, named_facets
from lit_robust.reference.corruption_baselines import SEVERITIES, benchmark_corruptions, corruption_baseline
from lit_robust.report.protocol import is_published, nearest_to_standard, points_of_difference, usual
from lit_robust.report.runs import Run, unique_labels
from lit_robust.report.titles import dataset_title, is_attacked, is_detail, threat_model

ALL = "all"
DECISIONS = "cue_conflict_decisions.json"
NETWORKS = "networks.json"
# What a test set is, not how it was used: values on other classes have nothing to say about each other.
SAME_SET = ("num_classes", "number_of_categories")


@cache
def _content() -> dict[str, Any]:
    folder = files("lit_robust.reference") / "published"
    return {
        entry.name: json.loads(entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".json")
    }


def published_names() -> list[str]:
    """Return the names that ``--published`` takes, in the order of the table of networks."""
    return list(_content()[NETWORKS])


def published_title(name: str) -> str:
    """Return what to call one of ``published_names`` before a reader."""
    return str(_content()[NETWORKS][name]["title"])


def published_results(name: str) -> list[Result]:
    """Return all published values of a network, those of one measure one after another.

    Args:
        name: one of ``published_names``, such as ``resnet50``.

    Returns:
        Results whose protocol holds ``published``, the source, and what the source tells of how it measured.

    Raises:
        UserError: there is no such name.
    """
    if name not in _content()[NETWORKS]:
        close = get_close_matches(name, published_names(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(published_names())}."
        raise UserError(f"There are no published values of {name!r}: {hint}")
    found = []
    for file, content in _content().items():
        if file == DECISIONS:
            found += _decisions(content, name)
        elif file != NETWORKS:
            found += [result for part in content["sets"] for result in _values(content["source"], part, name)]
    return found + (_unit_of_corruption_errors() if name == "alexnet" else [])


def _values(source: str, part: Mapping[str, Any], name: str) -> list[Result]:
    protocol = {**part["protocol"], "published": source, **({"remark": part["remark"]} if "remark" in part else {})}
    values = part["values"].get(name, {})
    return [_result(part["dataset"], metric, value, part["count"], protocol) for metric, value in values.items()]


def _result(dataset: str, metric: str, value: float, count: int, protocol: Mapping[str, Any]) -> Result:
    facets = named_facets(dataset, metric, protocol)
    return Result(dataset, metric, value, "fraction", count, protocol, facets=facets)


def _unit_of_corruption_errors() -> list[Result]:
    """Return AlexNet's accuracies on ImageNet-C, which all errors are relative to, its own being 1 therefore."""
    baseline = corruption_baseline("imagenet-c")
    corruptions = benchmark_corruptions()
    values = {"mce": 1.0, "relative_mce": 1.0}
    values["mean_accuracy"] = 1 - sum(baseline.mean_errors[name] for name in corruptions) / len(corruptions)
    for name in corruptions:
        cells = {f"top1_{name}_{severity}": 1 - error for severity, error in enumerate(baseline.errors[name], start=1)}
        values |= {**cells, f"top1_{name}": 1 - baseline.mean_errors[name], f"ce_{name}": 1.0}
    protocol = {
        "resize": None,
        "images_a_cell": baseline.images,
        "baseline": {"name": baseline.name},
        "published": "Hendrycks and Dietterich 2019, hendrycks/robustness issue 10",
    }
    count = baseline.images * len(corruptions) * len(SEVERITIES)
    return [_result("imagenet-c", metric, value, count, protocol) for metric, value in values.items()]


def _decisions(content: Mapping[str, Any], name: str) -> list[Result]:
    """Derive biases from counts of shape, texture, other and right decisions, a row a category."""
    counts: Mapping[str, list[int]] = content["counts"].get(name, {})
    if not counts:
        return []
    human = name == "humans"
    settings = content["human_protocol" if human else "protocol"]
    remark = "ten observers, pooled" if human else content["remark"]
    protocol = {**settings, "published": content["source"], "remark": remark}
    # Ten observers saw the same images: the set has a tenth of their answers.
    repeats = 10 if human else 1
    shape, texture, other, right, same = (sum(column) for column in zip(*counts.values(), strict=True))
    conflict = (shape + texture + other) // repeats
    dataset = content["dataset"]
    results = [Result(dataset, "shape_bias", shape / (shape + texture), "fraction", conflict, protocol)]
    if not human:
        for decision, decided in (("shape", shape), ("texture", texture), ("other", other)):
            facets = {"measure": "decisions", "decision": decision}
            metric = f"{decision}_decisions"
            results.append(Result(dataset, metric, float(decided), "count", conflict, protocol, facets=facets))
    results.append(Result(dataset, "accuracy_without_conflict", right / same, "fraction", same // repeats, protocol))
    for category, (in_shape, in_texture, neither, _, _) in counts.items():
        own_protocol = {**protocol, "shape_decisions": in_shape, "texture_decisions": in_texture}
        seen = (in_shape + in_texture + neither) // repeats
        bias = in_shape / (in_shape + in_texture)
        facets = {"measure": "shape_bias", "category": category}
        results.append(Result(dataset, f"shape_bias_{category}", bias, "fraction", seen, own_protocol, facets=facets))
    return results


def published_runs(names: Sequence[str], runs: Sequence[Run]) -> list[Run]:
    """Return published networks as rows to stand next to runs.

    Where several sources measured the same, the value stands whose protocol is nearest to that of the runs, or to the
    standard of its test set where no run measured it.

    Args:
        names: of ``published_names``; or ``all`` alone, every network with a value in a column of the runs, without
            its other columns.
        runs: the measured runs.

    Raises:
        UserError: a name is not known, or ``all`` does not stand alone.
    """
    if ALL in names and list(names) != [ALL]:
        raise UserError(f"--published is {', '.join(names)}, but {ALL} stands alone: leave out {ALL}, or the others.")
    columns = _columns(runs)
    chosen = published_names() if list(names) == [ALL] else list(dict.fromkeys(names))
    rows = {name: _nearest(published_results(name), columns) for name in chosen}
    if list(names) == [ALL]:
        shared = {name: [r for r in found if is_detail(r) or _shares(r, columns)] for name, found in rows.items()}
        rows = {name: found for name, found in shared.items() if any(_shares(r, columns) for r in found)}
    titles = [published_title(name) for name in rows]
    taken = [run.label for run in runs]
    labels = unique_labels([*taken, *titles], [Path()] * (len(taken) + len(titles)))[len(taken) :]
    return [
        Run(label, Path(), RunResults({}, {"network": _content()[NETWORKS][name]["weights"]}, found), published=True)
        for label, (name, found) in zip(labels, rows.items(), strict=True)
    ]


def _key(result: Result) -> tuple[str, str]:
    return result.dataset, result.metric


def _columns(runs: Iterable[Run]) -> dict[tuple[str, str], Result]:
    """Return of each measure a result that was measured as most of it are."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for run in runs:
        for result in run.found.results:
            groups.setdefault(_key(result), []).append(result)
    return {key: usual(results) for key, results in groups.items()}


def _nearest(results: list[Result], columns: Mapping[tuple[str, str], Result]) -> list[Result]:
    """Return one value a measure: the one whose protocol has the fewest differences from the column's.

    Where no run measured it, the standard protocol of the test set stands for the column's.
    """
    fitting: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        column = _column_of(result, columns)
        placed = replace(result, metric=column.metric, facets=column.facets) if column else result
        fitting.setdefault(_key(placed), []).append(placed)
    found = []
    for key, candidates in fitting.items():
        column = columns.get(key)
        if column is None:
            found.append(nearest_to_standard(candidates)[0])
            continue
        found.append(min(candidates, key=lambda candidate: len(points_of_difference(candidate, column))))
    return found


def _shares(published: Result, columns: Mapping[tuple[str, str], Result]) -> bool:
    column = columns.get(_key(published))
    return column is not None and _same_set(published, column)


def _same_set(published: Result, measured: Result) -> bool:
    if dataset_title(measured.dataset, [measured]) != dataset_title(published.dataset, [published]):
        return False
    pairs = ((published.protocol.get(name), measured.protocol.get(name)) for name in SAME_SET)
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def _column_of(result: Result, columns: Mapping[tuple[str, str], Result]) -> Result | None:
    """Find the column of a published value; evaluations may have names of their own, attacks of one kind share one."""
    if _key(result) in columns or not is_attacked(result):
        return columns.get(_key(result))
    for column in filter(is_attacked, columns.values()):
        alike = _attack(column) == _attack(result) and not is_published(column)
        if alike and abs(column.facets["eps"] - result.facets["eps"]) < 1e-6:
            return column
    return None


def _attack(result: Result) -> tuple[object, ...]:
    attack = result.protocol.get("attack")
    name = attack.get("name") if isinstance(attack, Mapping) else None
    return result.dataset, threat_model(result), result.facets.get("norm"), name
