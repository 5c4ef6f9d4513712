"""Chen, Agarwal & Nguyen 2020, sections 3.3 and 3.4: filters, maps and units of standard and robust networks."""

from pathlib import Path
from typing import Literal

from lit_robust.cli.options import Count
from lit_robust.cli.papers.networks import SHAPE, Networks
from lit_robust.cli.papers.runs import Command, run


def shape_table_4(
    output: Path,
    /,
    *,
    data: str = "data",
    concepts: str | None = "data/broden1_224",
    networks: Networks = SHAPE,
    categories: str = "imagenet",
    quantile: float = 0.005,
    denominator: Literal["category-images", "touched", "all"] = "category-images",
    least_iou: float = 0.04,
    resize: Count | None = 256,
    crop: Count | None = 224,
    limit_images: Count | None = 500,
) -> list[Command]:
    """Chen, Agarwal & Nguyen 2020, Table 4 and Figures 4 to 10: smoothness, concepts and ablations of units, S and R.

    Args:
        output: folder of the runs
        data: root of the sets imagenet/ and cue-conflict/
        concepts: Broden's folder, or another of marked images; null leaves dissections out
        networks: name of a row to its network: name, num_classes, weights, mean, std; null leaves a row out; filters of
            NETWORK-robust and the like are matched with those of NETWORK-standard
        categories: which classes are which category: imagenet, shards, or a file
        quantile: share of a unit's activations above its threshold
        denominator: of the IoU; touched is NetDissect-Lite's, whose numbers the paper has
        least_iou: of a detector
        resize: shorter side of ImageNet's images first, pixels; null for none
        crop: then the centre, pixels; null for none
        limit_images: of ImageNet's, for maps and gradients; null for all
    """
    runs = []
    for row, network in networks.items():
        if network is None:
            continue
        net, made = ["--network", network], {kind: output / f"{row}-{kind}" for kind in ("dissection", "ablation")}
        crops: list[object] = ["--resize", resize, "--crop", crop, "--limit", limit_images]
        standard = f"{row.rpartition('-')[0]}-standard"
        if row != standard and networks.get(standard) is not None:
            crops += ["--other", networks[standard]]
        words = ["smoothness", *net, "--data", f"{data}/imagenet", *crops, "--output", output / f"{row}-smoothness"]
        runs.append(run(f"{row}-smoothness", "analyze", *words))
        labels: list[object] = []
        if concepts is not None:
            how = ["--quantile", quantile, "--denominator", denominator, "--least-iou", least_iou]
            words = ["dissection", "--concepts", concepts, *net, *how, "--output", made["dissection"]]
            runs.append(run(f"{row}-dissection", "analyze", *words))
            labels = ["--dissection", made["dissection"], "--least-iou", least_iou]
        words = ["ablation", *net, "--data", data, "--categories", categories, *labels, "--output", made["ablation"]]
        runs.append(run(f"{row}-ablation", "analyze", *words))
    return runs
