"""The results file: what a test run measured, and everything needed to believe it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text

SCHEMA = 2
READ = (1, SCHEMA)  # Schema 1 had warnings in the protocol, and neither facets nor intervals.
FILE_NAME = "results.json"


@dataclass(frozen=True)
class Result:
    """One measured value with its protocol.

    Attributes:
        dataset: the test loader's name, such as ``imagenet``.
        metric: name of the measure, such as ``top1`` or ``shape_bias``; the loggers' key is
            ``test/<dataset>/<metric>``.
        value: the value; a fraction stays a fraction. NaN where the measure is undefined.
        unit: ``fraction``, ``count`` or ``theta``.
        count: how many samples the value was measured on.
        protocol: plain values that settle how it was measured.
        interval: lower and upper end of a 95 % interval; None where the measure has none.
        facets: plain values of the axes that the value stands at, such as ``{"norm": "l2", "eps": 0.5}``.
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


@dataclass(frozen=True)
class Example:
    """One image kept for a reader's eyes, with what the network said of it.

    Attributes:
        dataset: the test loader's name.
        kind: ``adversarial`` (a pair: clean and attacked) or ``cue-conflict`` (a single image).
        index: the sample's number in its data set.
        images: role to PNG file, relative to the results file: ``clean``, ``adversarial``.
        captions: role to words, such as ``{"clean": "disc", "adversarial": "square"}``.
    """

    dataset: str
    kind: str
    index: int
    images: Mapping[str, str]
    captions: Mapping[str, str]


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

    def save(self, folder: Path) -> Path:
        """Write ``results.json`` into ``folder``, all of it or nothing, and return its path."""
        content = {"schema": SCHEMA, **asdict(self)}
        for entry in content["results"]:
            # JSON has no NaN; null says "undefined" to every reader.
            entry["value"] = None if math.isnan(entry["value"]) else entry["value"]
        path = folder / FILE_NAME
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> "RunResults":
        """Read a results file, or the one inside a run's folder.

        Raises:
            UserError: there is none, it is not JSON, its schema is another, or a part cannot be what it says.
        """
        file = path / FILE_NAME if path.is_dir() else path
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["schema"] not in READ:
                raise UserError(f"{file} has schema {content['schema']!r}; this version reads 1 and {SCHEMA}.")
            if not (isinstance(content["run"], dict) and isinstance(content["model"], dict)):
                raise UserError(
                    f"The run or the model of {file} is no object: write the file again with `lit-robust test`."
                )
            convert = _from_schema_1 if content["schema"] == 1 else dict
            results = [_result(convert(entry), file) for entry in content["results"]]
            examples = [Example(**entry) for entry in content["examples"]]
            return cls(run=content["run"], model=content["model"], results=results, examples=examples)
        except FileNotFoundError:
            raise UserError(f"No results file at {file}: name a folder that `lit-robust test` wrote into.") from None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): name a run's folder.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file} is not a results file ({error}): write it again with `lit-robust test`."
            ) from error


def _from_schema_1(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of a file of schema 1 as schema 2 has it."""
    if not isinstance(entry["protocol"], Mapping):
        return dict(entry)
    protocol = dict(entry["protocol"])
    return {**entry, "warnings": protocol.pop("warnings", ()), "protocol": protocol}


def _result(entry: Mapping[str, Any], file: Path) -> Result:
    """Return one entry of a results file as a result.

    Raises:
        UserError: its value is neither a finite number nor null, its count no whole number, its protocol or its facets
            no object, its interval no pair, its warnings no sentences, or what names it no word.
    """
    result = Result(**entry)
    for name in ("dataset", "metric", "unit"):
        if not isinstance(entry[name], str):
            raise UserError(
                f"{result.key} of {file} has the {name} {entry[name]!r}, which is no word: write the file again with "
                "`lit-robust test`."
            )
    for name, told in (("protocol", result.protocol), ("facets", result.facets)):
        if not isinstance(told, Mapping):
            raise UserError(
                f"{result.key} of {file} has the {name} {told!r}, which is no object: write the file again with "
                "`lit-robust test`."
            )
    warnings, interval = result.warnings, result.interval
    if not isinstance(warnings, list | tuple) or not all(isinstance(warning, str) for warning in warnings):
        raise UserError(
            f"{result.key} of {file} has the warnings {warnings!r}, which are no list of sentences: write the file "
            "again with `lit-robust test`."
        )
    if interval is not None and not _is_interval(interval):
        raise UserError(
            f"{result.key} of {file} has the interval {interval!r}, which is not two finite numbers in ascending "
            "order: write the file again with `lit-robust test`."
        )
    value, count = entry["value"], entry["count"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise UserError(
            f"{result.key} of {file} has the count {count!r}, which is no whole number of samples: write the file "
            "again with `lit-robust test`."
        )
    # A NaN stands for what is undefined, whether as null or as some writers have it.
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value)):
        raise UserError(
            f"{result.key} of {file} has the value {value!r}, which is no finite number: write the file again with "
            "`lit-robust test`."
        )
    return replace(
        result,
        value=math.nan if value is None else float(value),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        warnings=tuple(warnings),
    )


def _is_interval(told: Any) -> bool:
    if not isinstance(told, list | tuple) or len(told) != 2:
        return False
    numbers = (isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in told)
    return all(numbers) and told[0] <= told[1]
