"""How values were measured: what settles it, in which points two values differ, and which curves belong together."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lit_robust.results import Result

# These tell what is wrong with a value, and the reader gets them in other ways.
_APART = ("partial", "full_count", "restricted", "broken_images", "skipped", "warnings", "flags", "broken_by")
# What was measured along the way: another network has others.
_MEASURED = ("agreement", "clean top1")
# Where a published value is from, and what else is to be said of it; and curves, which are drawn.
_BESIDE = ("published", "remark", "precision_recall")
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
    """Return all that settles how a value was measured, as words; equal facts mean values that can be compared."""
    settings = {key: value for key, value in result.protocol.items() if key not in (*_APART, *_BESIDE)}
    if isinstance(settings.get("attack"), Mapping):
        settings["attack"] = {"eps": settings["attack"].get("eps"), **attack_settings(result)}
    # A partial value's count is told where it stands; here counts what its test set holds.
    if "images_a_cell" not in settings:
        settings["images"] = settings.get("images", result.protocol.get("full_count", result.count))
    settings["unit"] = result.unit
    return {name: plain(value) for name, value in flat(settings).items() if name not in _MEASURED}


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
    told = f" ({settings})" if settings else ""
    return f"{result.protocol['published']}{told}{f'; {remark}' if remark else ''}"


def limits(result: Result) -> list[str]:
    """Say what of its test set a value leaves out, other than by being partial, and what casts doubt on it.

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
    said += [str(warning).rstrip(".") for warning in protocol.get("warnings", ())]
    return said


def usual(results: Sequence[Result]) -> Result:
    """Return a result measured as most of ``results`` are; the earliest where there is no majority.

    Published ones count only where nothing was measured.
    """
    results = [result for result in results if not is_published(result)] or results
    counts = Counter(tuple(sorted(facts(result).items())) for result in results)
    most = max(counts.values())
    return next(result for result in results if counts[tuple(sorted(facts(result).items()))] == most)


def differences(result: Result, reference: Result) -> str:
    """Say in which points a value was measured otherwise than a reference; empty if in none.

    A setting that one of two runs does not state is a difference. Publications do not state all settings: where one
    of the two is published, those count that both state.

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
