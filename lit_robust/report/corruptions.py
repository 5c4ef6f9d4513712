"""Values of a corruption benchmark, sorted for its figures."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lit_robust.core.results import Result, RunResults
from lit_robust.report.titles import dataset_title, of_corruptions, order

# Reading order and groups of Hendrycks and Dietterich 2019, figure 1; the last four enter no mean.
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
SEVERITIES = (1, 2, 3, 4, 5)
_PLACES = {name: place for place, name in enumerate(name for names in GROUPS.values() for name in names)}


@dataclass
class CorruptionValues:
    """What one run has on one corruption benchmark.

    Attributes:
        cells: corruption and severity to accuracy.
        means: corruption to accuracy over its severities.
        errors: corruption to corruption error (1 is AlexNet's).
        mean_error: their mean, None if it is not there.
    """

    cells: dict[tuple[str, int], Result] = field(default_factory=dict)
    means: dict[str, Result] = field(default_factory=dict)
    errors: dict[str, Result] = field(default_factory=dict)
    mean_error: Result | None = None


def corruption_values(found: RunResults, dataset: str) -> CorruptionValues:
    """Return a run's values on a corruption benchmark; undefined ones are left out.

    Args:
        found: the run's results.
        dataset: the benchmark's name, such as ``imagenet-c``.
    """
    values = CorruptionValues()
    for result in found.results:
        if result.dataset != dataset or not math.isfinite(result.value):
            continue
        corruption, severity = result.facets.get("corruption"), result.facets.get("severity")
        if result.measure == "mce":
            values.mean_error = result
        elif corruption is None:
            continue
        elif result.measure == "ce":
            values.errors[corruption] = result
        elif result.measure == "top1" and severity is not None:
            values.cells[corruption, severity] = result
        elif result.measure == "top1":
            values.means[corruption] = result
    return values


def in_order(corruptions: Iterable[str]) -> list[str]:
    """Return corruptions in reading order, each once; unknown ones stand last, by name.

    Example:
        >>> in_order(["rain", "fog", "shot_noise", "fog"])
        ['shot_noise', 'fog', 'rain']
    """
    return sorted(set(corruptions), key=lambda name: (_PLACES.get(name, len(_PLACES)), name))


def corrupted_sets(runs: Mapping[str, RunResults]) -> dict[str, str]:
    """Return the corruption benchmarks that any run has values of, in the table's order: name to title."""
    sets: dict[str, list[Result]] = {}
    for result in sorted((result for found in runs.values() for result in found.results), key=order):
        if of_corruptions(result):
            sets.setdefault(result.dataset, []).append(result)
    return {name: dataset_title(name, own) for name, own in sets.items()}
