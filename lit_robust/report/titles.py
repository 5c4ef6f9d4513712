"""What a reader sees in place of keys: titles, their order, and values as percentages."""

import math
from collections.abc import Iterable

from lit_robust.core.results import CORRUPTED_SETS, Result

DATASETS = {
    "imagenet": "ImageNet",
    "stylized-imagenet": "Stylized-ImageNet",
    "imagenet-c": "ImageNet-C",
    "imagenet-c-like": "ImageNet-C-like",
    "restricted-imagenet": "Restricted ImageNet",
    "imagenet-a": "ImageNet-A",
    "imagenet-o": "ImageNet-O",
    "imagenet-r": "ImageNet-R",
    "imagenet-sketch": "ImageNet-Sketch",
    "imagenet-hard": "ImageNet-Hard",
    "imagenet-v2-matched-frequency": "ImageNet-V2, matched frequency",
    "imagenet-v2-threshold-0.7": "ImageNet-V2, threshold 0.7",
    "imagenet-v2-top-images": "ImageNet-V2, top images",
    "objectnet": "ObjectNet",
    "imagenet-c-bar": "ImageNet-C\N{COMBINING MACRON}",
    "imagenet-3dcc": "ImageNet-3DCC",
    "cue-conflict": "Cue conflict",
}
# Anyone may call a folder so; the toy data do. Sets without a number of their own have ImageNet's 1,000 classes.
CLASSES = {"restricted-imagenet": 9, "objectnet": None, "cue-conflict": None}
METRICS = {
    "top1": "Top-1 accuracy",
    "top1_difference": "Top-1 accuracy beyond the other run's",
    "top5": "Top-5 accuracy",
    "top1_all_classes": "Top-1 accuracy, all classes",
    "top1_imagenet_a_classes": "Top-1 accuracy, ImageNet-A's classes",
    "top1_imagenet_o_classes": "Top-1 accuracy, ImageNet-O's classes",
    "top1_imagenet_r_classes": "Top-1 accuracy, ImageNet-R's classes",
    "top1_objectnet_classes": "Top-1 accuracy, ObjectNet's classes",
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
    "accuracy_among_categories": "Accuracy among categories",
    "accuracy_difference": "Accuracy difference from people, squared",
    "observed_consistency": "Observed consistency with people",
    "error_consistency": "Error consistency with people",
    "shape_bias": "Shape bias",
    "accuracy_without_conflict": "Accuracy without conflict",
    "shape_decisions": "Shape decisions",
    "texture_decisions": "Texture decisions",
    "other_decisions": "Other decisions",
}
ATTACKED = "adversarial_accuracy"
MEASURES = {**METRICS, ATTACKED: "Adversarial", "ce": "CE", "error_consistency": "Error consistency"}
NORM_TITLES = {"l2": "L2", "linf": "L\N{INFINITY}", "l1": "L1"}
THREATS = ("white-box", "memory-surrogate", "gray-box", "black-box")
USUAL = {"threat_model": "white-box", "score": "max_softmax"}  # No title says so.
# Axes whose values say by themselves what they are.
SPEAKING = (
    "threat_model",
    "corruption",
    "category",
    "observer",
    "score",
    "classes",
    "decision",
    "variant",
    "condition",
)
DETAILS = ("category", "condition", "corruption", "layer", "unit")  # Axes with many values, which belong into figures.
UNDEFINED = "undefined"


def is_attacked(result: Result) -> bool:
    """Tell whether a value is an adversarial accuracy at an eps, and so a point of a curve."""
    return result.measure == ATTACKED and "eps" in result.facets


def threat_model(result: Result) -> str:
    """Return what an attack sees: ``white-box``, ``gray-box``, ``black-box`` or ``memory-surrogate``."""
    return str(result.facets.get("threat_model", USUAL["threat_model"]))


def of_corruptions(result: Result) -> bool:
    """Tell whether a value is of a corruption benchmark, which may have any name.

    Example:
        >>> of_corruptions(Result("fog-and-snow", "mce", 0.8, "fraction", 10, {"cells": ["fog/1", "snow/1"]}))
        True
    """
    return "cells" in result.protocol or "corruption" in result.facets or result.dataset in CORRUPTED_SETS


def is_detail(result: Result) -> bool:
    """Tell whether a value is one of many of its kind, which belong into a figure and not into the main table."""
    return any(axis in result.facets for axis in DETAILS)


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
    counts = (result.protocol.get("num_classes") for result in results if result.dataset == dataset)
    other = next((count for count in counts if count not in (None, expected)), None)
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
    """Return a metric's name for a column: its measure and its axes; an unknown one with its underscores as spaces.

    Example:
        >>> attacked = {"measure": "adversarial_accuracy", "norm": "l2", "eps": 0.5}
        >>> metric_title(Result("imagenet", "adversarial_accuracy_l2_eps_0.5", 0.5, "fraction", 9, {}, facets=attacked))
        'Adversarial, L2, eps 0.5'
    """
    return ", ".join(filter(None, [series_title(result), eps_title(result)]))


def series_title(result: Result) -> str:
    """Return a metric's name for a column without its eps, which is that of a whole curve."""
    if result.metric in METRICS:
        return METRICS[result.metric]
    measure = result.measure.replace("_", " ")
    name = str(result.facets.get("attack", "")).replace("_", " ")
    words = [f"{MEASURES.get(result.measure, measure[:1].upper() + measure[1:])} {name}".strip()]
    for axis, value in result.facets.items():
        if axis in ("measure", "series", "attack", "eps") or USUAL.get(axis) == value:
            continue
        word = f"{value:.4g}" if isinstance(value, float) else str(value).replace("_", " ")
        word = NORM_TITLES.get(word, word) if axis == "norm" else word
        words.append(word if axis in (*SPEAKING, "norm") else f"{axis.replace('_', ' ')} {word}")
    return ", ".join(words)


def eps_title(result: Result) -> str:
    """Return in words the eps that a value stands at; empty for other metrics."""
    facets = result.facets
    return f"eps {eps_text(facets.get('norm', ''), facets['eps'])}" if "eps" in facets else ""


def order(result: Result) -> tuple[int, str, int, int, str, float]:
    """Return the sorting key of a value's column: known sets and metrics first, then by name, eps and theta.

    Attacks stand behind the other metrics of their set, those that see the network under test first.
    """
    sets, metrics = list(DATASETS), list(METRICS)
    set_rank = sets.index(result.dataset) if result.dataset in sets else len(sets)
    series = str(result.facets.get("series", result.metric))
    if is_attacked(result):
        seen = threat_model(result)
        threat = THREATS.index(seen) if seen in THREATS else len(THREATS)
        return set_rank, result.dataset, len(metrics) + 1, threat, series, result.facets["eps"]
    known = metrics.index(result.metric) if result.metric in metrics else len(metrics)
    return set_rank, result.dataset, known, 0, series, result.facets.get("theta", 0.0)


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


def interval_text(result: Result) -> str:
    """Return a value's 95 % interval for a reader, in the unit of the value; empty where it has none.

    Example:
        >>> interval_text(Result("imagenet", "top1", 0.665, "fraction", 200, {}, (0.597, 0.7268)))
        '59.7\N{EN DASH}72.7'
        >>> interval_text(Result("imagenet", "top1_difference", -0.1, "fraction", 200, {}, (-0.162, -0.082)))
        '-16.2 to -8.2'
    """
    if result.interval is None:
        return ""
    between = " to " if min(result.interval) < 0 else "\N{EN DASH}"  # No dash before a minus.
    return between.join(value_text(end, result.unit) for end in result.interval)
