"""Engstrom et al. 2019, "Adversarial robustness as a prior for learned representations"."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_robust.cli.options import Count
from lit_robust.cli.papers.runs import Command, run

Networks = Mapping[str, Mapping[str, Any] | None]
RESNETS: Networks = {
    "standard": {"name": "torchvision/resnet50", "weights": "IMAGENET1K_V1"},
    "robust": {"name": "torchvision/resnet50", "weights": "resnet50_l2_eps3.ckpt"},
}
VGG: Mapping[str, Any] = {"name": "torchvision/vgg16", "weights": "IMAGENET1K_V1"}


def representation_figures(
    output: Path,
    /,
    *,
    data: Path = Path("data/imagenet"),
    other: Path | None = None,
    split: str = "val",
    other_split: str = "test",
    networks: Networks = RESNETS,
    judge: Mapping[str, Any] = VGG,
    layer: str | None = None,
    resize: Count | None = 256,
    crop: Count | None = 224,
    images: Count = 64,
    within: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    steps: Count = 10_000,
    step_size: float = 1.0,
    batch: Count = 32,
) -> list[Command]:
    """Engstrom et al. 2019, Figures 3 to 12: inversion, interpolation, visualisation and manipulation, S against R.

    Args:
        output: folder of the runs
        data: folder of the set's shards
        other: folder of a set of other classes, such as data/imagenet-o, inverted, too (Figure 6); null for none
        split: of the set
        other_split: of the other one
        networks: name of a row to its network: name, num_classes, weights, mean, std; null leaves a row out
        judge: a network that says what it sees in the images
        layer: of the representation; null for what the last linear layer is given
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        images: how many are inverted
        within: largest distances from the start of Figure 4, in L2
        steps: of inversions and interpolations; a visualisation has 200, a manipulation at most 800
        step_size: of inversions, interpolations and visualisations, in L2; a manipulation has 0.1 of it
        batch: images at once
    """
    runs = []
    for row, network in networks.items():
        if network is None:
            continue
        crops = ["--resize", resize, "--crop", crop, "--batch", batch]
        shared = ["--network", network, *crops, *([] if layer is None else ["--layer", layer])]
        judged, search = ["--judge", judge], ["--search.steps", steps, "--search.step_size", step_size]
        made = output / row
        studies: dict[str, list[object]] = {
            "inversion": ["inversion", data, *judged, *search, "--images", images],
            "reach": [
                *("inversion", data, *judged, *search, "--images", images),
                *("--starts", "images", "--within", list(within)),
            ],
            "interpolation": ["interpolation", data, *judged, *search],
            "visualisation": ["visualisation", data, *judged, "--search.step_size", step_size],
            "manipulation": ["manipulation", data, "--search.step_size", step_size / 10],
        }
        if other is not None:
            studies["other-classes"] = ["inversion", other, *search, "--images", images]
        runs += [
            run(f"{row}-{name}", "analyze", *words, "--split", part, *shared, "--output", f"{made}-{name}")
            for name, words in studies.items()
            for part in [other_split if name == "other-classes" else split]
        ]
    return runs
