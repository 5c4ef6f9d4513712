"""What a reader sees in place of keys: titles, their order, and values as percentages."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_robust.results import Result

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
    "shape_bias": "Shape bias",
    "accuracy_without_conflict": "Accuracy without conflict",
    "shape_decisions": "Shape decisions",
    "texture_decisions": "Texture decisions",
    "other_decisions": "Other decisions",
}
NORMS = {"l2": "L2", "linf": "L\N{INFINITY}", "l1": "L1"}
UNDEFINED = "undefined"


@dataclass(frozen=True, order=True)
class Sweep:
    """The place of a value in an accuracy-against-eps curve.

    Attributes:
        stem: the metric's name without its eps; values of one stem are one curve.
        norm: ``l2``, ``linf``, or empty if nobody says.
        eps: radius in [0, 1] pixel units.
    """

    stem: str
    norm: str
    eps: float


def sweep(result: Result) -> Sweep | None:
    """Return where an adversarial accuracy belongs, from its protocol and its name; None for other metrics.

    Example:
        >>> attack = {"attack": {"norm": "l2", "eps": 0.25}}
        >>> sweep(Result("imagenet", "adversarial_accuracy_l2_eps_0.25", 0.5, "fraction", 10, attack))
        Sweep(stem='adversarial_accuracy_l2', norm='l2', eps=0.25)
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
    return Sweep(matched[1], norm if norm in NORMS else "", eps)


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
    """Return an eps as people write it: multiples of 1/255 for L-infinity, else the number.

    Example:
        >>> eps_text("linf", 4 / 255), eps_text("l2", 0.5)
        ('4/255', '0.5')
    """
    steps = eps * 255
    if norm == "linf" and eps > 0 and math.isclose(steps, round(steps, 1), rel_tol=1e-3):
        return f"{round(steps, 1):g}/255"
    return f"{eps:.4g}"


def metric_title(result: Result) -> str:
    """Return a metric's name for a column; an unknown one with its underscores as spaces."""
    if (place := sweep(result)) is not None:
        extra = place.stem.removeprefix("adversarial_accuracy").removesuffix(f"_{place.norm}").replace("_", " ").strip()
        parts = (f"Adversarial {extra}".strip(), NORMS.get(place.norm, ""), f"eps {eps_text(place.norm, place.eps)}")
        return ", ".join(part for part in parts if part)
    if (name := category(result)) is not None:
        return f"Shape bias, {name}"
    words = result.metric.replace("_", " ")
    return METRICS.get(result.metric, words[:1].upper() + words[1:])


def order(result: Result) -> tuple[int, str, int, str, float]:
    """Return the sorting key of a value's column: known sets and metrics first, then by name, then by eps."""
    sets, metrics = list(DATASETS), list(METRICS)
    set_rank = sets.index(result.dataset) if result.dataset in sets else len(sets)
    place = sweep(result)
    if place is not None:
        return set_rank, result.dataset, 2, place.stem, place.eps
    # Top-1 and top-5 stand before the adversarial accuracies, everything else after them.
    known = metrics.index(result.metric) if result.metric in metrics else len(metrics)
    return set_rank, result.dataset, known if known < 2 else known + 1, result.metric, 0.0


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
