"""``lit-robust analyze ...``: studies of one trained network; a typed function each, as in ``commands``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lit_robust.cli.options import Count, Seed
from lit_robust.cli.ranks import ranks
from lit_robust.cli.representations import (
    analyze_interpolation,
    analyze_inversion,
    analyze_manipulation,
    analyze_visualisation,
)
from lit_robust.cli.sensitivity import (
    analyze_attribution,
    analyze_frechet_distance,
    analyze_fusion,
    analyze_jacobian,
    analyze_perturbation_size,
)
from lit_robust.core.errors import UserError

__all__ = [
    "analyze_ablation",
    "analyze_attribution",
    "analyze_dissection",
    "analyze_frechet_distance",
    "analyze_fusion",
    "analyze_interpolation",
    "analyze_inversion",
    "analyze_jacobian",
    "analyze_log",
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
    data: Path | None = None,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    limit: Count | None = 500,
    layers: Sequence[str] | None = None,
    sigma: float = 0.08,
    seed: Seed = 0,
    batch: Count = 32,
    other: Mapping[str, Any] | None = None,
    output: Path = Path("runs/smoothness"),
) -> None:
    """Measure how smooth a network is: total variation of its weights, of its maps with and without noise, gradients.

    Args:
        command: the command line
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        data: shards of one set, such as data/imagenet, for maps and gradients; null for weights alone
        split: its split
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        limit: images drawn at random, always the same ones; null for all
        layers: whose maps are measured, as in "[layer3, layer4]"; null for the network's stages
        sigma: of the Gaussian noise, in [0, 1] pixel units; 0.08 is severity 1 of ImageNet-C
        seed: of the noise
        batch: images at once, which change no number
        other: network of the same architecture, as --network, whose first filters are matched; null for none
        output: folder for results.json, tables, arrays and pictures
    """
    from lit_robust.analysis.images import Images
    from lit_robust.analysis.layers import stages
    from lit_robust.analysis.smoothness_study import smoothness_study
    from lit_robust.cli.study import Study, network_of
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.models import build_classifier

    if not 0 <= sigma <= 1:
        raise UserError(f"sigma is {sigma}, where 1 is black to white: give 0 to 1, such as {sigma / 255:.3g}.")
    study = Study("smoothness", output, command, network_of(network))
    images = None if data is None else Images.open(data, split, EvaluationCrop(resize, crop), limit)
    second = None if other is None else build_classifier(network_of(other, "other")).eval()
    classifier = study.build()
    names = list(layers or [])
    if images is not None and layers is None:
        names = stages(classifier, images.take([0]).to(study.device))
    study.finish(smoothness_study(classifier, images, names, sigma, seed, batch, second))


def analyze_ablation(
    *,
    command: str,
    network: Mapping[str, Any] = AS_IT_IS,
    data: str = "data",
    categories: str = "imagenet",
    resize: Count | None = None,
    crop: Count | None = None,
    aggregation: Literal["mean", "max", "sum"] = "mean",
    layers: Sequence[str] | None = None,
    limit: Count | None = None,
    dissection: Path | None = None,
    least_iou: float = 0.04,
    output: Path = Path("runs/ablation"),
) -> None:
    """Count for every unit the cue-conflict decisions that change without it: its Shape and its Texture score.

    The scores are exact. An interrupted call goes on where it was.

    Args:
        command: the command line
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        data: root of the sets, with cue-conflict/
        categories: which classes are which category: imagenet, shards, or a file
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        aggregation: how a category's probability follows from its classes'
        layers: as in "[layer3, layer4]"; null for the network's stages
        limit: images drawn at random for a quick look, always the same ones; null for all
        dissection: folder of `lit-robust analyze dissection` of the same network, whose labels the units have
        least_iou: of a labelled unit
        output: folder for results.json, units.csv, arrays and pictures
    """
    from lit_robust.analysis.ablation import identity_of, scores_study, unit_scores
    from lit_robust.analysis.images import conflict_images
    from lit_robust.analysis.layers import stages
    from lit_robust.cli.study import Study, network_of, unit_labels
    from lit_robust.data.loading.transforms import EvaluationCrop

    study = Study("ablation", output, command, network_of(network))
    conflict = conflict_images(data, categories, EvaluationCrop(resize, crop), limit, study.network.num_classes)
    labels = None if dissection is None else unit_labels(dissection)
    classifier = study.build()
    names = stages(classifier, conflict.images(0).to(study.device)) if layers is None else list(layers)
    identity = identity_of(study.weights_sha256, dict(conflict.protocol), names, aggregation)
    partial = output / ".partial.safetensors"
    scores = unit_scores(classifier, conflict, names, aggregation, partial, identity)
    study.finish(scores_study(classifier, conflict, scores, aggregation, labels, least_iou))
    partial.unlink(missing_ok=True)


def analyze_dissection(
    *,
    command: str,
    concepts: Path,
    network: Mapping[str, Any] = AS_IT_IS,
    layers: Sequence[str] | None = None,
    quantile: float = 0.005,
    denominator: Literal["category-images", "touched", "all"] = "category-images",
    upsampling: Literal["bilinear", "receptive-field"] = "bilinear",
    least_iou: float = 0.04,
    batch: Count = 16,
    limit: Count | None = None,
    twins: Path | None = None,
    output: Path = Path("runs/dissection"),
) -> None:
    """Say which marked concept each unit's strongest activations fall on: network dissection, in exact counts.

    `torchrun --nproc-per-node 4 -m lit_robust analyze dissection ...` shares the images among processes.

    Args:
        command: the command line
        concepts: images with marked concepts: Broden's folder, or one with images/, maps/ and names.csv; `lit-robust
            data concepts` draws one
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        layers: as in "[layer3, layer4]"; null for the network's stages
        quantile: share of a unit's activations that exceed its threshold; .03 for the drawn concepts, which cover more
        denominator: images in which a unit's mask counts: category-images, those that have the concept's category, as
            the original; touched, those where the mask touches it, as NetDissect-Lite, which is never lower; all
        upsampling: bilinear over the image, as NetDissect-Lite; receptive-field, at the centres of receptive fields, as
            the original
        least_iou: that a detector exceeds
        batch: images at once, which change no number
        limit: images taken for a quick look, evenly spread; null for all
        twins: folder of the same images with other textures, such as CONCEPTS/twins: how far units stay where they are
        output: folder for results.json, units.csv, concepts.csv, arrays and pictures
    """
    from lit_robust.analysis.concepts import open_concepts
    from lit_robust.analysis.dissection import dissect
    from lit_robust.analysis.labelled_units import labelled_study, twin_overlap, twin_results, unit_pictures
    from lit_robust.analysis.layers import stages
    from lit_robust.analysis.upsampling import Axis, at_centres, bilinear, receptive_field
    from lit_robust.cli.study import Study, network_of

    if not 0 < quantile < 1:
        raise UserError(f"quantile is {quantile}: give a share between 0 and 1, such as 0.005.")
    study = Study("dissection", output, command, network_of(network))
    marked = open_concepts(concepts, limit)
    with ranks() as (rank, _):
        classifier = study.build()
        first = marked.pixels(0)[None].float().div(255).to(study.device)
        names = stages(classifier, first) if layers is None else list(layers)
        axes: dict[str, Axis] = dict.fromkeys(names, bilinear)
        if upsampling == "receptive-field":
            axes = {name: at_centres(receptive_field(classifier, name), first.shape[2]) for name in names}
        found = dissect(classifier, marked, names, quantile, axes, batch)
    if rank > 0:
        return
    protocol = {"concepts": concepts.name, "images": len(marked), "upsampling": upsampling, "thresholds": "exact"}
    outcome = labelled_study(found, marked, denominator, least_iou, protocol)
    results = list(outcome.results)
    if twins is not None:
        results += twin_results(twin_overlap(classifier, marked, twins, names, 0.01), 0.01, protocol)
    pictures, captions = unit_pictures(classifier, marked, found, denominator, axes)
    study.finish(replace(outcome, results=results, pictures=pictures, captions=captions))


def analyze_log(runs: tuple[Path, ...], *, project: str = "lit-robust") -> None:
    """Send what studies found to W&B: their values, tables and pictures, a run each.

    Args:
        runs: folders that `lit-robust analyze` wrote into
        project: of W&B
    """
    from lit_robust.cli.study_log import log_study

    for folder in runs:
        print(f"Logged {folder}: {log_study(folder, project)}.")
