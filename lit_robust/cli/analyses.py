"""``lit-robust analyze ...``: studies of one trained network; a typed function each, as in ``commands``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_robust.cli.representations import (
    analyze_interpolation,
    analyze_inversion,
    analyze_manipulation,
    analyze_visualisation,
)
from lit_robust.cli.sensitivity import (
    analyze_attribution,
    analyze_fusion,
    analyze_jacobian,
    analyze_perturbation_size,
)

__all__ = [
    "analyze_attribution",
    "analyze_fusion",
    "analyze_interpolation",
    "analyze_inversion",
    "analyze_jacobian",
    "analyze_manipulation",
    "analyze_perturbation_size",
    "analyze_smoothness",
    "analyze_visualisation",
]
AS_IT_IS: Mapping[str, Any] = {}


def analyze_smoothness(
    *,
    command: str,
    network: Mapping[str, Any] = AS_IT_IS,
    output: Path = Path("runs/smoothness"),
) -> None:
    """Measure how smooth filters are: total variation of weights, layer by layer.

    Args:
        command: the command line
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        output: folder for results.json, tables, arrays and pictures
    """
    from lit_robust.analysis.smoothness import weight_study
    from lit_robust.cli.study import Study, network_of

    study = Study("smoothness", output, command, network_of(network))
    study.finish(weight_study(study.build()))
