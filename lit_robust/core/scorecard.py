"""The ten values that matter most of a run, found among all that it measured; for the page, the tables and W&B."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lit_robust.core.results import Result

CLEAN, ADVERSARIAL, AUTOATTACK, CORRUPTED, NATURAL, RENDITIONS = "clean", "adversarial", "autoattack", "mce", "a", "r"
OUTLIERS, CALIBRATION, SHAPE, MEMORY = "o_aupr", "calibration_error", "shape_bias", "memory"
OTHER_SETS = ("stylized-imagenet", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet", "cue-conflict")
Strength = tuple[str, float]
"""Norm and eps of an attack."""


@dataclass(frozen=True)
class ScoredMeasure:
    """One column of the card.

    Attributes:
        name: in loggers, such as ``score/clean``.
        title: for a reader.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        about: what it is, in a sentence.
    """

    name: str
    title: str
    better: int
    about: str


SCORES = (
    ScoredMeasure(CLEAN, "Clean", 1, "Clean is the accuracy on the images as they are."),
    ScoredMeasure(
        ADVERSARIAL, "Attacked", 1, "Attacked is the share of images that stay right under the attack of that eps."
    ),
    ScoredMeasure(AUTOATTACK, "AutoAttack", 1, "AutoAttack is that under AutoAttack."),
    ScoredMeasure(CORRUPTED, "mCE", -1, "mCE is the mean corruption error in per cent of AlexNet's."),
    ScoredMeasure("corrupted", "Corrupted", 1, "Corrupted is the mean accuracy over the corruptions tested."),
    ScoredMeasure(NATURAL, "A", 1, "A is the accuracy on ImageNet-A or its like."),
    ScoredMeasure(RENDITIONS, "R", 1, "R is the accuracy on ImageNet-R or its like."),
    ScoredMeasure(OUTLIERS, "O, AUPR", 1, "O, AUPR is how well confidence tells images of unknown classes."),
    ScoredMeasure(
        CALIBRATION, "Calibration error", -1, "Calibration error is the RMS gap between confidence and accuracy."
    ),
    ScoredMeasure(SHAPE, "Shape bias", 0, "Shape bias is the share of shape among the decisions for shape or texture."),
    ScoredMeasure(
        MEMORY, "Memory", 1, "Memory is the accuracy of a cache model whose backbone alone the attacker sees."
    ),
)


def main_strength(runs: Iterable[Sequence[Result]]) -> Strength | None:
    """Return norm and eps of the white-box attack that most runs were tested by; None where none was.

    Of a curve it is the eps that the evaluation's own attack has; where the results do not say which, the largest.
    """
    found = [[result for result in results if _is_attacked(result)] for results in runs]
    tested = Counter(strength for results in found for strength in dict.fromkeys(map(_strength, results)))
    mains = [
        _strength(result)
        for results in found
        for result in results
        if result.protocol.get("main_eps", max(other.facets["eps"] for other in results)) == result.facets["eps"]
    ]
    return max(mains, key=lambda strength: tested[strength]) if mains else None


def scores(results: Sequence[Result], strength: Strength | None) -> dict[str, Result]:
    """Return a run's value of each column that it has one for, by the column's name.

    Args:
        results: of one run.
        strength: of the attack, see ``main_strength``.
    """
    clean = _clean_set(results)
    wanted: Mapping[str, Callable[[Result], bool]] = {
        CLEAN: lambda one: (one.dataset, one.metric) == (clean, "top1"),
        ADVERSARIAL: lambda one: one.dataset == clean and _is_attacked(one) and _strength(one) == strength,
        AUTOATTACK: lambda one: one.dataset == clean and _is_attack(one, "white-box") and _is_autoattack(one),
        CORRUPTED: lambda one: one.metric == "mce",
        "corrupted": lambda one: one.metric in ("mean_accuracy", "mean_accuracy_of_tested_cells"),
        NATURAL: lambda one: (one.dataset, one.metric) == ("imagenet-a", "top1"),
        RENDITIONS: lambda one: (one.dataset, one.metric) == ("imagenet-r", "top1"),
        OUTLIERS: lambda one: one.metric == "aupr",
        CALIBRATION: lambda one: (one.dataset, one.metric) == (clean, "rms_calibration_error"),
        SHAPE: lambda one: one.metric == "shape_bias",
        MEMORY: lambda one: one.dataset == clean and _is_attack(one, "gray-box") and _strength(one) == strength,
    }
    firsts = {name: next(filter(fits, results), None) for name, fits in wanted.items()}
    found = {name: result for name, result in firsts.items() if result is not None}
    return {name: result for name, result in found.items() if name != "corrupted" or CORRUPTED not in found}


def _clean_set(results: Sequence[Result]) -> str:
    names = [result.dataset for result in results if result.metric == "top1" and "cells" not in result.protocol]
    return next((name for name in ["imagenet", *names] if name in names and name not in OTHER_SETS), "imagenet")


def _is_attack(result: Result, threat: str) -> bool:
    is_attack = result.measure == "adversarial_accuracy" and {"norm", "eps"} <= result.facets.keys()
    return is_attack and result.facets.get("threat_model", "white-box") == threat


def _is_attacked(result: Result) -> bool:
    return _is_attack(result, "white-box") and not _is_autoattack(result)


def _is_autoattack(result: Result) -> bool:
    attack = result.protocol.get("attack")
    name = attack.get("name") if isinstance(attack, Mapping) else attack
    return "autoattack" in (result.facets.get("attack"), str(name).lower())


def _strength(result: Result) -> Strength:
    return str(result.facets["norm"]), float(result.facets["eps"])
