"""AlexNet's errors on ImageNet-C, which corruption errors are measured in.

``imagenet_c_alexnet.csv`` holds error rates, fractions, of two measurements:

- on all 50,000 images: per severity from hendrycks/robustness issue 10, whose means are those of google-research/augmix
  ``imagenet.py``; of the four extra corruptions only the means are published. Clean: 43.48 %.
- on RobustBench's 5,000 images, as its ``model_info/imagenet/corruptions/unaggregated_results.csv`` has it. Clean:
  ``AlexNet.json`` next to that file. There are no extra corruptions.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from lit_robust.core.errors import check_choice

BaselineName = Literal["imagenet-c", "robustbench-5000"]
_IMAGES: Mapping[BaselineName, int] = {"imagenet-c": 50_000, "robustbench-5000": 5_000}
SEVERITIES = (1, 2, 3, 4, 5)
# Other benchmarks of ImageNet-C's form, each with the corruptions of its mean: those of facebookresearch/
# augmentation-corruption ``imagenet_c_bar/imagenet_c_bar.csv`` (Mintun et al. 2021), and of EPFL-VILAB/
# 3DCommonCorruptions ``tools/download_imagenet_3dcc.sh`` (Kar et al. 2022). AlexNet's errors on them are not published.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "imagenet-c-bar": (
        "blue_noise_sample",
        "brownish_noise",
        "caustic_refraction",
        "checkerboard_cutout",
        "cocentric_sine_waves",  # So they spell it.
        "inverse_sparkles",
        "perlin_noise",
        "plasma_noise",
        "single_frequency_greyscale",
        "sparkles",
    ),
    "imagenet-3dcc": (
        "near_focus",
        "far_focus",
        "fog_3d",
        "flash",
        "color_quant",
        "low_light",
        "xy_motion_blur",
        "z_motion_blur",
        "iso_noise",
        "bit_error",
        "h265_abr",
        "h265_crf",
    ),
}


@dataclass(frozen=True)
class CorruptionBaseline:
    """Errors of the network whose errors are the unit of a corruption error.

    Attributes:
        name: which measurement.
        network: whose errors.
        images: how many images each cell had.
        clean_error: error rate on the images as they were.
        errors: of each corruption the error rates at severities 1 to 5; not of those known by their mean alone.
        mean_errors: of each corruption the mean over the five severities.
    """

    name: str
    network: str
    images: int
    clean_error: float
    errors: Mapping[str, tuple[float, ...]]
    mean_errors: Mapping[str, float]

    def protocol(self) -> dict[str, str | int]:
        """Return plain values for a result."""
        return {"name": self.name, "network": self.network, "images": self.images}


def _rows(images: int) -> list[dict[str, str]]:
    content = files("lit_robust.reference").joinpath("imagenet_c_alexnet.csv").read_text(encoding="utf-8")
    return [row for row in csv.DictReader(content.splitlines()) if int(row["images"]) == images]


@cache
def corruption_baseline(name: BaselineName) -> CorruptionBaseline:
    """Return AlexNet's errors on all of ImageNet-C, or on the 5,000 images of RobustBench.

    Raises:
        UserError: there is no baseline of that name.
    """
    check_choice("baseline", name, get_args(BaselineName))
    rows = _rows(_IMAGES[name])
    columns = [f"severity_{severity}" for severity in SEVERITIES]
    return CorruptionBaseline(
        name=name,
        network="AlexNet",
        images=_IMAGES[name],
        clean_error=float(rows[0]["clean"]),
        errors={
            row["corruption"]: tuple(float(row[column]) for column in columns) for row in rows if row["severity_1"]
        },
        mean_errors={row["corruption"]: float(row["mean"]) for row in rows},
    )


@cache
def benchmark_corruptions() -> tuple[str, ...]:
    """Return the 15 corruptions that a mean corruption error is taken over, in the paper's order."""
    return tuple(row["corruption"] for row in _rows(_IMAGES["imagenet-c"]) if row["kind"] == "benchmark")


def benchmark_of(corruptions: Iterable[str]) -> tuple[str, ...]:
    """Return the corruptions of the mean of the benchmark that some corruptions are of: ImageNet-C's 15, or another's.

    Example:
        >>> len(benchmark_of(["fog"])), len(benchmark_of(["fog_3d"]))
        (15, 12)
    """
    some = set(corruptions)
    return next((family for family in FAMILIES.values() if some & set(family)), benchmark_corruptions())


@cache
def known_corruptions() -> tuple[str, ...]:
    """Return ImageNet-C's 15 corruptions and the four extra ones, then those of the other benchmarks."""
    own = [row["corruption"] for row in _rows(_IMAGES["imagenet-c"])]
    return (*own, *(name for family in FAMILIES.values() for name in family))
