"""How values were measured: what settles it, in which points two values differ, and which curves belong together."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_robust.core.results import Result

# These tell what is wrong with a value, and the reader gets them in other ways.
_APART = ("partial", "full_count", "restricted", "broken_images", "skipped", "flags", "broken_by")
# What was measured along the way: another network has others.
_MEASURED = ("agreement", "clean top1")
# Where a published value is from, and what else is to be said of it; and curves, which are drawn.
_BESIDE = ("published", "remark", "precision_recall", "interval", "main_eps", "seeds")
# How many samples a value counts: of a part of a set it says nothing about how anything was measured.
_COUNTS = ("images", "positives", "negatives", "in distribution count", "clean images")
# Hendrycks and Dietterich 2019: what values of a set mean where no measured one gives a protocol.
_STANDARD: Mapping[str, Mapping[str, Any]] = {
    "imagenet-c": {"resize": None, "images_a_cell": 50_000, "baseline": {"name": "imagenet-c"}}
}
_LONGEST = 40


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings on one level, their names joined by spaces.

    Example:
        >>> flat({"attack": {"step_size": 1.0}, "crop": 224})
        {'attack step size': 1.0, 'crop': 224}
    """
    levels: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and value:
            levels.update(flat(value, f"{name} "))
        else:
            levels[name] = value
    return levels


def plain(value: Any) -> str:
    """Return a setting as a reader writes it: no quotes, numbers without a needless end.

    Example:
        >>> plain(1.0), plain(None), plain([1, 2]), plain("bilinear")
        ('1', 'none', '1, 2', 'bilinear')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence):
        return ", ".join(plain(part) for part in value)
    return json.dumps(value) if value != {} else "none"


def attack_settings(result: Result) -> dict[str, Any]:
    """Return the attack's settings that are one for a whole sweep over eps: its step size in units of eps."""
    attack = result.protocol.get("attack")
    settings = dict(attack) if isinstance(attack, Mapping) else {}
    eps, step = settings.pop("eps", None), settings.get("step_size")
    if isinstance(eps, int | float) and isinstance(step, int | float) and eps > 0:
        del settings["step_size"]
        settings["step_size_over_eps"] = float(f"{step / eps:.6g}")
    return settings


def facts(result: Result) -> dict[str, str]:
    """Return all that settles how a value was measured, as words; equal facts mean values that can be compared.

    A partial value's counts stand next to it, and are not facts.
    """
    settings = {key: value for key, value in result.protocol.items() if key not in (*_APART, *_BESIDE)}
    if isinstance(settings.get("attack"), Mapping):
        settings["attack"] = {"eps": settings["attack"].get("eps"), **attack_settings(result)}
    if "images_a_cell" not in settings:
        settings.setdefault("images", result.count)
    settings["unit"] = result.unit
    left_out = (*_MEASURED, *_COUNTS) if is_partial(result) else _MEASURED
    return {name: plain(value) for name, value in flat(settings).items() if name not in left_out}


def is_partial(result: Result) -> bool:
    """Tell whether a value was measured on a part of its test set only."""
    return bool(result.protocol.get("partial"))


def is_published(result: Result) -> bool:
    """Tell whether a value was taken from a publication and not measured here."""
    return "published" in result.protocol


def source_words(result: Result) -> str:
    """Return where a published value is from, how it was measured as far as that is known, and what to know of it.

    Example:
        >>> source_words(Result("imagenet", "top1", 0.5, "fraction", 9, {"resize": 256, "published": "A 2020"}))
        'A 2020 (resize 256)'
    """
    told_by_column = ("unit", "images", "num classes", "attack eps", "attack norm", "threat model")
    known = {name: words for name, words in facts(result).items() if name not in told_by_column}
    remark = result.protocol.get("remark")
    settings = ", ".join(f"{name} {words}" for name, words in known.items())
    settled = f" ({settings})" if settings else ""
    return f"{result.protocol['published']}{settled}{f'; {remark}' if remark else ''}"


def limits(result: Result) -> list[str]:
    """Say what of its test set a value leaves out, other than by being partial.

    Example:
        >>> limits(Result("imagenet", "top1", 0.5, "fraction", 9, {"broken_images": 1}))
        ['1 images could not be read and are left out']
    """
    protocol = result.protocol
    said = [str(protocol["restricted"]).rstrip(".")] if "restricted" in protocol else []
    if "skipped" in protocol:
        said.append(f"left out, as the settings allow, are {plain(protocol['skipped'])}")
    if "broken_images" in protocol:
        said.append(f"{protocol['broken_images']} images could not be read and are left out")
    return said


def usual(results: Sequence[Result]) -> Result:
    """Return a result measured as most of ``results`` are; the earliest where there is no majority.

    Published ones count only where nothing was measured, and then those nearest to the standard protocol of their set;
    partial ones only where nothing is complete.
    """
    results = [result for result in results if not is_published(result)] or nearest_to_standard(results)
    results = [result for result in results if not is_partial(result)] or results
    counts = Counter(tuple(sorted(facts(result).items())) for result in results)
    most = max(counts.values())
    return next(result for result in results if counts[tuple(sorted(facts(result).items()))] == most)


def nearest_to_standard(results: Sequence[Result]) -> list[Result]:
    """Return those of one test set's ``results`` that have the fewest differences from its standard protocol.

    Example:
        >>> a = Result("imagenet-c", "mce", 0.78, "fraction", 10, {"published": "A 2020", "resize": 256})
        >>> b = Result("imagenet-c", "mce", 0.77, "fraction", 10, {"published": "B 2020", "resize": None})
        >>> [result.value for result in nearest_to_standard([a, b])]
        [0.77]
    """
    far = [len(points_of_difference(result, _standard(result))) for result in results]
    return [result for result, distance in zip(results, far, strict=True) if distance == min(far)]


def _standard(result: Result) -> Result:
    """Return the value as if the standard were a publication, which states no more than it does."""
    return replace(result, protocol={**_STANDARD.get(result.dataset, {}), "published": "the standard"})


def differences(result: Result, reference: Result) -> str:
    """Say in which points a value was measured otherwise than a reference; empty if in none.

    A setting that one of two runs does not state is a difference. Publications do not state all settings: where one
    of the two is published, those count that both state. Counts of samples are none where one of the two is partial.

    Example:
        >>> a = Result("imagenet", "top1", 0.5, "fraction", 10, {"resize": 256})
        >>> b = Result("imagenet", "top1", 0.5, "fraction", 10, {"resize": 232})
        >>> differences(b, a)
        'resize 232 instead of 256'
    """
    return "; ".join(points_of_difference(result, reference))


def points_of_difference(result: Result, reference: Result) -> list[str]:
    """Return what ``differences`` says as a list of points."""
    own, other = facts(result), facts(reference)
    if is_partial(result) or is_partial(reference):
        own, other = ({name: side[name] for name in side if name not in _COUNTS} for side in (own, other))
    if is_published(result) or is_published(reference):
        both = own.keys() & other.keys()
        own, other = ({name: side[name] for name in side if name in both} for side in (own, other))
    points = []
    for name in dict.fromkeys([*own, *other]):
        mine, theirs = own.get(name, "not stated"), other.get(name, "not stated")
        if mine != theirs and max(len(mine), len(theirs)) > _LONGEST:
            points.append(f"another {name}")
        elif mine != theirs:
            points.append(f"{name} {mine} instead of {theirs}")
    return points
