"""What a reader sees in place of keys: titles, their order, and values as percentages."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_robust.core.results import Result

DATASETS = {
    "imagenet": "ImageNet",
    "stylized-imagenet": "Stylized-ImageNet",
    "imagenet-c": "ImageNet-C",
    "imagenet-c-like": "ImageNet-C-like",
    "restricted-imagenet": "Restricted ImageNet",
    "imagenet-a": "ImageNet-A",
    "imagenet-o": "ImageNet-O",
    "cue-conflict": "Cue conflict",
}
# Anyone may call a folder so; the toy data do. Sets without a number of their own have ImageNet's 1,000 classes.
CLASSES = {"restricted-imagenet": 9, "cue-conflict": None}
METRICS = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "top1_all_classes": "Top-1 accuracy, all classes",
    "top1_imagenet_a_classes": "Top-1 accuracy, ImageNet-A's classes",
    "top1_imagenet_o_classes": "Top-1 accuracy, ImageNet-O's classes",
    "mce": "mCE",
    "relative_mce": "Relative mCE",
    "mean_accuracy": "Mean accuracy",
    "aupr": "AUPR",
    "auroc": "AUROC",
    "fpr95": "FPR at 95 % recall",
    "rms_calibration_error": "RMS calibration error",
    "rms_calibration_error_published": "RMS calibration error, as published",
    "ece": "ECE",
    "aurra": "AURRA",
    "shape_bias": "Shape bias",
    "accuracy_without_conflict": "Accuracy without conflict",
    "shape_decisions": "Shape decisions",
    "texture_decisions": "Texture decisions",
    "other_decisions": "Other decisions",
}
SCORES = {"aupr": "AUPR", "auroc": "AUROC", "fpr95": "FPR at 95 % recall"}
# By these names where a protocol does not list its cells, as those of published values do not.
CORRUPTED_SETS = ("imagenet-c", "imagenet-c-like")
NORMS = {"l2": "L2", "linf": "L\N{INFINITY}", "l1": "L1"}
THREATS = ("white-box", "memory-surrogate", "gray-box", "black-box")
UNDEFINED = "undefined"


@dataclass(frozen=True, order=True)
class Sweep:
    """The place of a value in an accuracy-against-eps curve.

    Attributes:
        stem: the metric's name without its eps; values of one stem are one curve.
        norm: ``l2``, ``linf``, or empty if nobody says.
        eps: radius in [0, 1] pixel units.
        threat: what the attack sees: ``white-box``, ``gray-box``, ``black-box``, ``memory-surrogate``.
    """

    stem: str
    norm: str
    eps: float
    threat: str


@dataclass(frozen=True)
class Corrupted:
    """The place of a value in a corruption benchmark.

    Attributes:
        kind: ``ce``, a corruption error, or ``top1``, an accuracy.
        corruption: its name, such as ``gaussian_noise``.
        severity: 1 to 5; None over all of them.
    """

    kind: str
    corruption: str
    severity: int | None


def sweep(result: Result) -> Sweep | None:
    """Return where an adversarial accuracy belongs, from its protocol and its name; None for other metrics.

    Example:
        >>> attack = {"attack": {"norm": "l2", "eps": 0.25}}
        >>> sweep(Result("imagenet", "adversarial_accuracy_l2_eps_0.25", 0.5, "fraction", 10, attack))
        Sweep(stem='adversarial_accuracy_l2', norm='l2', eps=0.25, threat='white-box')
    """
    matched = re.fullmatch(r"(adversarial_accuracy\w*?)_eps_(.+)", result.metric)
    attack = result.protocol.get("attack")
    settings: Mapping[str, Any] = attack if isinstance(attack, Mapping) else {}
    if matched is None:
        return None
    try:
        eps = float(settings.get("eps", matched[2]))
    except (TypeError, ValueError):
        return None
    norm = str(settings.get("norm", matched[1].rsplit("_", 1)[-1]))
    return Sweep(matched[1], norm if norm in NORMS else "", eps, _threat(matched[1], result.protocol))


def _threat(stem: str, protocol: Mapping[str, Any]) -> str:
    named = re.match(r"adversarial_accuracy_(gray_box|black_box|memory_surrogate)", stem)
    return str(protocol.get("threat_model", named[1].replace("_", "-") if named else "white-box"))


def of_corruptions(result: Result) -> bool:
    """Tell whether a value is of a corruption benchmark, which may have any name.

    Example:
        >>> of_corruptions(Result("fog-and-snow", "mce", 0.8, "fraction", 10, {"cells": ["fog/1", "snow/1"]}))
        True
    """
    return "cells" in result.protocol or result.dataset in CORRUPTED_SETS


def corrupted(result: Result) -> Corrupted | None:
    """Return which corruption, and which severity, a value of a corruption benchmark is of; None for other metrics.

    Example:
        >>> corrupted(Result("imagenet-c", "top1_fog_3", 0.5, "fraction", 50_000, {}))
        Corrupted(kind='top1', corruption='fog', severity=3)
    """
    matched = re.fullmatch(r"(ce|top1)_(\w+?)(?:_([1-5]))?", result.metric)
    if matched is None or not of_corruptions(result):
        return None
    return Corrupted(matched[1], matched[2], int(matched[3]) if matched[3] else None)


def is_detail(result: Result) -> bool:
    """Tell whether a value is one of many of its kind, which belong into a figure and not into the main table."""
    return category(result) is not None or corrupted(result) is not None


def observer(result: Result) -> str | None:
    """Return the single observer whose errors these are compared to, None for other metrics and for people's mean."""
    name = result.metric.removeprefix("error_consistency_")
    return None if name in (result.metric, "humans") else name


def category(result: Result) -> str | None:
    """Return the category whose shape bias this is, None for other metrics."""
    prefix = "shape_bias_"
    return result.metric.removeprefix(prefix) if result.metric.startswith(prefix) else None


def dataset_title(dataset: str, results: Iterable[Result] = ()) -> str:
    """Return a test set's name as papers write it; if it has other classes than that set, its own name and their count.

    Args:
        dataset: the test loader's name.
        results: of which those on the set tell how many classes it has, if anybody said.

    Example:
        >>> toy = Result("imagenet", "top1", 0.5, "fraction", 10, {"num_classes": 8})
        >>> dataset_title("imagenet", [toy]), dataset_title("imagenet")
        ('imagenet of 8 classes', 'ImageNet')
    """
    expected = CLASSES.get(dataset, 1000) if dataset in DATASETS else None
    told = (result.protocol.get("num_classes") for result in results if result.dataset == dataset)
    other = next((count for count in told if count not in (None, expected)), None)
    if expected is None or other is None:
        return DATASETS.get(dataset, dataset)
    return f"{dataset} of {other} classes"


def eps_text(norm: str, eps: float) -> str:
    """Return an eps as people write it: in L-infinity as whole or small half steps of 1/255 where it is so, else plain.

    Example:
        >>> eps_text("linf", 4 / 255), eps_text("linf", 0.1), eps_text("l2", 0.5)
        ('4/255', '0.1', '0.5')
    """
    # 0.1 is 25.5/255, and nobody says so.
    steps = round(2 * eps * 255) / 2 if eps < 0.05 else round(eps * 255)
    if norm == "linf" and steps > 0 and math.isclose(eps * 255, steps, rel_tol=1e-3):
        return f"{steps:g}/255"
    return f"{eps:.4g}"


def metric_title(result: Result) -> str:
    """Return a metric's name for a column; an unknown one with its underscores as spaces."""
    if (place := sweep(result)) is not None:
        extra = place.stem.removeprefix("adversarial_accuracy").removesuffix(f"_{place.norm}")
        extra = extra.removeprefix(f"_{place.threat.replace('-', '_')}").replace("_", " ").strip()
        threat = "" if place.threat == "white-box" else place.threat
        norm, eps = NORMS.get(place.norm, ""), f"eps {eps_text(place.norm, place.eps)}"
        return ", ".join(part for part in (f"Adversarial {extra}".strip(), threat, norm, eps) if part)
    if (name := category(result)) is not None:
        return f"Shape bias, {name}"
    if (cell := corrupted(result)) is not None:
        parts = ("CE" if cell.kind == "ce" else "Top-1", cell.corruption.replace("_", " "), str(cell.severity or ""))
        return ", ".join(part for part in parts if part)
    score, _, rest = result.metric.partition("_")
    if score in SCORES and rest:
        return f"{SCORES[score]}, {rest.replace('_', ' ')}"
    if result.metric.startswith("error_consistency_"):
        return f"Error consistency, {result.metric.removeprefix('error_consistency_').replace('_', ' ')}"
    words = result.metric.replace("_", " ")
    return METRICS.get(result.metric, words[:1].upper() + words[1:])


def order(result: Result) -> tuple[int, str, int, int, str, float]:
    """Return the sorting key of a value's column: known sets and metrics first, then by name, then by eps.

    Attacks stand behind the other metrics of their set, those that see the network under test first.
    """
    sets, metrics = list(DATASETS), list(METRICS)
    set_rank = sets.index(result.dataset) if result.dataset in sets else len(sets)
    place = sweep(result)
    if place is not None:
        threat = THREATS.index(place.threat) if place.threat in THREATS else len(THREATS)
        return set_rank, result.dataset, len(metrics) + 1, threat, place.stem, place.eps
    known = metrics.index(result.metric) if result.metric in metrics else len(metrics)
    return set_rank, result.dataset, known, 0, result.metric, 0.0


def value_text(value: float, unit: str) -> str:
    """Return a value for a reader: a fraction as a percentage with one decimal, a count whole.

    Example:
        >>> value_text(0.2207, "fraction"), value_text(1200, "count"), value_text(float("nan"), "fraction")
        ('22.1', '1,200', 'undefined')
    """
    if not math.isfinite(value):
        return UNDEFINED
    if unit == "fraction":
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if unit == "count" else f"{value:.4g}"
