"""The results file: what a test run measured, and everything needed to believe it."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, replace
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from lit_robust.core.errors import UserError
from lit_robust.core.files import read_regular, write_text

if TYPE_CHECKING:
    import pandas

SCHEMA = 2
FILE_NAME = "results.json"
WRITE_AGAIN = "write the file again with `lit-robust test`"
DEEPEST = 32  # levels of a run's settings or of a protocol
LARGEST = 2.0**63
NORMS = ("l1", "l2", "linf")
# What a value of each unit can be; a unit that is not here may have any finite value.
UNITS: Mapping[str, tuple[float, float]] = {
    "fraction": (0, 1),
    "count": (0, math.inf),
    "theta": (0, math.inf),
}
# Fractions that are not shares of something: errors in a baseline's errors, and agreement beyond chance.
FRACTIONS: Mapping[str, tuple[float, float]] = {
    "ce": (0, math.inf),
    "mce": (0, math.inf),
    "relative_mce": (-math.inf, math.inf),
    "error_consistency": (-1, 1),
    "top1_difference": (-1, 1),
}
ROUNDING = 1e-9
# By these names where a protocol does not list its cells, as those of published values do not.
CORRUPTED_SETS = ("imagenet-c", "imagenet-c-like")
# The axes, and what each is: a word or a number. A measure may have others, which are words or numbers, too.
FACETS: Mapping[str, type] = {
    "measure": str,  # the metric's name without its axes
    "series": str,  # the metric's name without its last axis: values of one series are one curve
    "attack": str,  # the evaluation's own name, such as ``autoattack``
    "threat_model": str,
    "norm": str,
    "eps": float,  # in [0, 1] pixel units
    "corruption": str,
    "severity": int,
    "category": str,
    "decision": str,
    "observer": str,
    "condition": str,
    "score": str,
    "classes": str,
    "variant": str,
    "theta": float,
    "layer": str,
    "unit": int,
}


@dataclass(frozen=True)
class Result:
    """One measured value with its protocol.

    Attributes:
        dataset: the test loader's name, such as ``imagenet``.
        metric: name of the measure, such as ``top1``; the loggers' key is ``test/<dataset>/<metric>``.
        value: the value; a fraction stays a fraction. NaN where the measure is undefined.
        unit: ``fraction``, ``count`` or ``theta``; see ``UNITS`` and ``FRACTIONS`` for the range of each.
        count: how many samples the value was measured on.
        protocol: plain values that settle how it was measured.
        interval: lower and upper end of a 95 % interval; None where the measure has none.
        facets: the axes that the value stands at, words or numbers, such as ``{"norm": "l2", "eps": 0.5}``; see
            ``FACETS``.
        warnings: sentences on why the value may mislead.
    """

    dataset: str
    metric: str
    value: float
    unit: str
    count: int
    protocol: Mapping[str, Any]
    interval: tuple[float, float] | None = None
    facets: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The logger's key, ``test/<dataset>/<metric>``."""
        return f"test/{self.dataset}/{self.metric}"

    @property
    def measure(self) -> str:
        """The metric's name without its axes."""
        return str(self.facets.get("measure", self.metric))


@dataclass(frozen=True)
class Example:
    """One image kept for a reader's eyes, with what the network said of it.

    Attributes:
        dataset: the test loader's name.
        kind: ``adversarial`` (a pair: clean and attacked) or ``cue-conflict`` (a single image).
        index: the sample's number in its data set.
        images: role to PNG file, relative to the results file: ``clean``, ``adversarial``.
        captions: role to words, such as ``{"clean": "disc", "adversarial": "square"}``.
        series: the facet of the results that it illustrates; empty where it is of the whole test set.
    """

    dataset: str
    kind: str
    index: int
    images: Mapping[str, str]
    captions: Mapping[str, str]
    series: str = ""


@dataclass
class RunResults:
    """A whole results file.

    Attributes:
        run: name, command, seed, versions, hardware, start, duration.
        model: module, network, weights hash, training settings.
        results: the values.
        examples: images to look at.
    """

    run: dict[str, Any]
    model: dict[str, Any]
    results: list[Result]
    examples: list[Example] = field(default_factory=list)

    def save(self, folder: str | Path) -> Path:
        """Write ``results.json`` into ``folder``, all of it or nothing, and return its path."""
        content = {"schema": SCHEMA, **asdict(self)}
        for entry in content["results"]:
            # JSON has no NaN; null says "undefined" to every reader.
            entry["value"] = None if math.isnan(entry["value"]) else entry["value"]
        path = Path(folder) / FILE_NAME
        write_text(path, json.dumps({"sha256": _digest(content), **content}, indent=1, allow_nan=False) + "\n")
        return path

    def to_frame(self) -> "pandas.DataFrame":
        """Return the values as a table of pandas, one a row.

        Returns:
            The columns ``dataset``, ``metric``, ``value``, ``unit``, ``count``, ``low`` and ``high`` (the ends of the
            95 % interval, NaN where there is none), one for each facet, such as ``eps`` (that
            of a layer's unit is ``unit_number``), and ``warnings``.
        """
        import pandas

        rows = [
            {
                **{name: getattr(result, name) for name in ("dataset", "metric", "value", "unit", "count")},
                **dict(zip(("low", "high"), result.interval or (math.nan, math.nan), strict=True)),
                **{"unit_number" if name == "unit" else name: value for name, value in result.facets.items()},
                "warnings": "; ".join(result.warnings),
            }
            for result in self.results
        ]
        return pandas.DataFrame(rows)

    @classmethod
    def load(cls, path: str | Path) -> "RunResults":
        """Read a results file of schema 1 or 2, or the one inside a run's folder.

        Raises:
            UserError: there is none, it is not JSON, its schema is another, it was changed after it was written, or a
                part cannot be what it says.
        """
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        try:
            return _run_results(json.loads(read_regular(file)), file)
        except FileNotFoundError:
            raise UserError(f"No results file at {file}: name a folder that `lit-robust test` wrote into.") from None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): name a run's folder.") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is not a results file ({error}): {WRITE_AGAIN}.") from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _run_results(content: Any, file: Path) -> RunResults:
    """Return what was parsed as results.

    Raises:
        UserError: its schema is another, its digest does not fit, or a value cannot be what it says.
        ValueError: its form is not that of a results file.
    """
    parts = ("schema", *RunResults.__dataclass_fields__)
    if not isinstance(content, dict) or content.keys() - {"sha256"} != set(parts):
        raise ValueError(f"it does not have {', '.join(parts)}")
    schema, digest = content["schema"], content.pop("sha256", None)
    if schema not in (1, SCHEMA):
        raise UserError(f"{file} has schema {short(schema)}; this version reads 1 and {SCHEMA}.")
    if digest is not None and digest != _digest(content):
        raise UserError(f"{file} was changed after it was written, as its sha256 shows: {WRITE_AGAIN}.")
    for name in ("run", "model"):
        if not isinstance(content[name], dict):
            raise UserError(f"The {name} of {file} is not an object: {WRITE_AGAIN}.")
        _check_plain(content[name], f"The {name} of {file}")
    for name, kind in (("results", Result), ("examples", Example)):
        fields = kind.__dataclass_fields__.values()
        needed = {one.name for one in fields if one.default is MISSING and one.default_factory is MISSING}
        entries = content[name] if isinstance(content[name], list) else [None]
        if not all(isinstance(e, dict) and needed <= e.keys() <= {one.name for one in fields} for e in entries):
            raise ValueError(f"one of its {name} does not have {', '.join(sorted(needed))}")
    results = [_result(entry, file) for entry in content["results"]]
    examples = [_example(entry, file) for entry in content["examples"]]
    if schema == 1:
        results = [_from_schema_1(each) for each in results]
        examples = [_series_of(each, results) for each in examples]
    for each in results:
        low, high = _range(each)
        inside = math.isnan(each.value) or low - ROUNDING <= each.value <= high + ROUNDING
        must = f"a {each.unit} {f'of {low:g} or more' if high == math.inf else f'from {low:g} to {high:g}'}"
        _check("value", each.value, inside, must, f"{each.key} of {file}")
    return RunResults(content["run"], content["model"], results, examples)


def _range(result: Result) -> tuple[float, float]:
    """Return the least and the largest value that a result of its unit and measure can have."""
    known = UNITS.get(result.unit, (-math.inf, math.inf))
    return FRACTIONS.get(result.measure, known) if result.unit == "fraction" else known


def _result(entry: Mapping[str, Any], file: Path) -> Result:
    """Return one entry of a results file as a result.

    Raises:
        UserError: a part of it cannot be what it says.
    """
    result = Result(**entry)
    place = f"{result.key} of {file}"
    for name in ("dataset", "metric", "unit"):
        _check(name, entry[name], _is_word(entry[name]), "a printable word", place)
    value, interval, warnings = result.value, result.interval, result.warnings
    whole = isinstance(result.count, int) and _is_number(result.count) and result.count >= 0
    _check("count", result.count, whole, "a whole number of samples", place)
    # A NaN stands for what is undefined, whether as null or as some writers have it.
    undefined = value is None or (isinstance(value, float) and math.isnan(value))
    _check("value", value, undefined or _is_number(value), "a finite number", place)
    pair = isinstance(interval, list | tuple) and len(interval) == 2
    ascending = interval is None or (pair and all(map(_is_number, interval)) and interval[0] <= interval[1])
    _check("interval", interval, ascending, "two finite numbers in ascending order", place)
    sentences = isinstance(warnings, list | tuple) and all(isinstance(warning, str) for warning in warnings)
    _check("warnings", warnings, sentences, "a list of sentences", place)
    for name, settings in (("protocol", result.protocol), ("facets", result.facets)):
        _check(name, settings, isinstance(settings, dict), "an object", place)
        _check_plain(settings, f"The {name} of {place}")
    for name, facet in result.facets.items():
        number = _is_number(facet) and (FACETS.get(name) is not int or isinstance(facet, int))
        fits = _is_word(facet) if FACETS.get(name) is str else number or (name not in FACETS and _is_word(facet))
        _check(f"facet {short(name)}", facet, fits, "what that axis is", place)
    return replace(
        result,
        value=math.nan if undefined else float(value),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        warnings=tuple(warnings),
    )


def _example(entry: Mapping[str, Any], file: Path) -> Example:
    example = Example(**entry)
    place = f"An example of {file}"
    for name in ("dataset", "kind", "series"):
        _check(name, getattr(example, name), _is_word(getattr(example, name)), "a printable word", place)
    _check("index", example.index, isinstance(example.index, int) and _is_number(example.index), "a number", place)
    for name, words in (("images", example.images), ("captions", example.captions)):
        fits = isinstance(words, dict) and all(isinstance(word, str) for word in words.values())
        _check(name, words, fits, "an object of words", place)
    _check("images", example.images, bool(example.images), "an object of at least one file", place)
    return example


def _check(name: str, value: Any, fits: bool, must: str, place: str) -> None:
    if not fits:
        raise UserError(f"{place} has the {name} {short(value)}, which is not {must}: {WRITE_AGAIN}.")


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _check_plain(settings: Any, place: str, depth: int = 0) -> None:
    """Check that settings are not nested beyond reason, and that each number in them is one that a float can hold.

    Raises:
        UserError: they are not.
    """
    if depth > DEEPEST:
        raise UserError(f"{place} is nested more than {DEEPEST} levels deep: {WRITE_AGAIN}.")
    if isinstance(settings, dict | list):
        for part in settings.values() if isinstance(settings, dict) else settings:
            _check_plain(part, place, depth + 1)
    elif isinstance(settings, int | float) and not isinstance(settings, bool):
        _check("number", settings, _is_number(settings), "a finite number", place)


def _from_schema_1(result: Result) -> Result:
    """Return a result of schema 1, which had warnings in the protocol and axes in the metric's name, as one of 2."""
    protocol = dict(result.protocol)
    given = protocol.pop("warnings", [])
    warnings = tuple(map(str, given)) if isinstance(given, list) else (str(given),)
    return replace(
        result,
        protocol=protocol,
        warnings=warnings,
        facets=named_facets(result.dataset, result.metric, protocol),
    )


def _series_of(example: Example, results: list[Result]) -> Example:
    """Return an example of schema 1, which had the series in its files' names, as one of 2."""
    names = {file.rsplit("/", 1)[-1].rsplit("-", 2)[0] for file in example.images.values()}
    series = {str(r.facets["series"]) for r in results if r.dataset == example.dataset and "series" in r.facets}
    found = (one for one in sorted(series) if f"{example.dataset}-{one}" in names)
    return replace(example, series=next(found, ""))


def named_facets(dataset: str, metric: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facets of a value that states none, from its name and protocol: one of schema 1, or a published one.

    Names were made of axes then, and this is the one place where they are taken apart.

    Args:
        dataset: the test loader's name.
        metric: the measure's full name.
        protocol: plain values that settle how it was measured.

    Example:
        >>> named_facets("imagenet-c", "top1_fog_3", {})
        {'measure': 'top1', 'corruption': 'fog', 'severity': 3}
    """
    if found := re.fullmatch(r"(adversarial_accuracy\w*?)_eps_(.+)", metric):
        return _attack_facets(found[1], found[2], protocol)
    corrupted = dataset in CORRUPTED_SETS or "cells" in protocol
    if corrupted and (found := re.fullmatch(r"(ce|top1)_(\w+?)(?:_([1-5]))?", metric)):
        severity = {"severity": int(found[3])} if found[3] else {}
        return {"measure": found[1], "corruption": found[2], **severity}
    if found := re.fullmatch(r"((gray_box_)?top1)_theta_(\d[\d.e+-]*)", metric):
        threat = {"threat_model": "gray-box"} if found[2] else {}
        return {"measure": "top1", "series": f"{found[1]}_theta", **threat, "theta": float(found[3])}
    if found := re.fullmatch(r"best_theta_(gray_box_)?top1", metric):
        return {"measure": "best_theta", **({"threat_model": "gray-box"} if found[1] else {})}
    if found := re.fullmatch(r"(aupr|auroc|fpr95)(?:_(\w+))?", metric):
        return {"measure": found[1], "score": found[2] or "max_softmax"}
    for pattern, measure, axis in (
        (r"shape_bias_(.+)", "shape_bias", "category"),
        (r"error_consistency_(humans)", "error_consistency", "variant"),
        (r"error_consistency_(.+)", "error_consistency", "observer"),
        (r"(shape|texture|other)_decisions", "decisions", "decision"),
        (r"rms_calibration_error_(published)", "rms_calibration_error", "variant"),
        (r"top1_(all|imagenet_a|imagenet_o|imagenet_r)_classes", "top1", "classes"),
    ):
        if found := re.fullmatch(pattern, metric):
            word = found[1].replace("_", "-") if axis == "classes" else found[1]
            return {"measure": measure, axis: word}
    return {}


def _attack_facets(series: str, last: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    attack = protocol.get("attack")
    settings: Mapping[str, Any] = attack if isinstance(attack, Mapping) else {}
    try:
        eps = float(settings.get("eps", last))
    except (TypeError, ValueError):
        return {}
    if not _is_number(eps):
        return {}
    words = re.fullmatch(
        r"adversarial_accuracy(?:_(gray_box|black_box|memory_surrogate))?(?:_(\w+?))??(?:_(l1|l2|linf))?", series
    )
    assert words is not None  # All its parts may be absent.
    threat = protocol.get("threat_model", (words[1] or "white-box").replace("_", "-"))
    norm = settings.get("norm", words[3])
    return {
        "measure": "adversarial_accuracy",
        "series": series,
        **({"attack": words[2]} if words[2] else {}),
        "threat_model": str(threat),
        **({"norm": norm} if norm in NORMS else {}),
        "eps": eps,
    }
