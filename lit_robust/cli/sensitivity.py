"""``lit-robust analyze jacobian`` and its like: what an answer depends on; typed functions, as in ``commands``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from lit_robust.cli.options import Count, Seed
from lit_robust.cli.studied import Studied

AS_IT_IS: Mapping[str, Any] = {}


def analyze_jacobian(
    data: Path,
    *,
    command: str,
    memory: Path | None = None,
    theta: float = 50,
    of: Literal["probabilities", "logits"] = "probabilities",
    probes: Count | None = None,
    seed: Seed = 0,
    studied: Studied = Studied(Path("runs/jacobian"), images=256),
) -> None:
    """Measure how strongly a network's answer changes with the image: the norm of its Jacobian at test images.

    With a memory it is the cache model's, which asks that memory (Orhan & Lake 2019).

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        memory: folder of a memory of this network's features; null for the network alone
        theta: temperature of the retrieval, exp(theta times similarity)
        of: probabilities, or logits
        probes: random directions that estimate the squared norm, a backward pass each; null for the exact norm, which
            takes one a class
        seed: of the probes
        studied: the network, and the images
    """
    from lit_robust.analysis.jacobian import jacobian_study
    from lit_robust.memory import open_memory
    from lit_robust.memory.classifier import CacheClassifier, Retrieval, Transform
    from lit_robust.models import weights_digest

    chosen = studied.open(data)
    study = studied.begin("jacobian", command)
    classifier = study.build()
    protocol = {**chosen.protocol, "seed": seed, "memory": None}
    model: Any = classifier
    if memory is not None:
        opened = open_memory(memory)
        about = opened.manifest
        asked = {**about.backbone, "weights_sha256": weights_digest(classifier.network)}
        about.check(memory, asked, about.layer, about.transform, about.num_classes)
        model = CacheClassifier(classifier, about.layer, cast(Transform, about.transform))
        model.open(opened, Retrieval(theta=theta), study.device)
        protocol |= {"memory": about.count, "layer": about.layer, "theta": theta}
    taken, _ = chosen.whole()
    study.finish(jacobian_study(model, taken, of, probes, studied.batch, seed, chosen.name, protocol, study.device))


def analyze_perturbation_size(
    data: Path,
    corrupted: Path,
    *,
    output: Path = Path("runs/perturbation-size"),
    split: str = "val",
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = (1,),
    resize: Count | None = 256,
    crop: Count | None = 224,
    enlarged: Count | None = 256,
    images: Count = 1000,
    batch: Count = 64,
) -> None:
    """Measure how large corruptions are: the largest change of a pixel over the largest pixel (Orhan & Lake 2019, 4.3).

    Args:
        data: folder of the clean set's shards, such as data/imagenet
        corrupted: folder in ImageNet-C's layout, made of the same images
        output: folder for results.json and arrays
        split: of both
        corruptions: names, as "[fog, frost]"; null for the 15 of the paper
        severities: some of 1 to 5
        resize: shorter side of the clean images first, pixels; null for none
        crop: then the centre, pixels; null for none
        enlarged: side to which corrupted images are enlarged before their centre is cut out, as that paper's pipeline
            did by mistake, which shifts them against the clean ones; null to leave that out
        images: how many, drawn once and for all
        batch: images at once
    """
    from lit_robust.analysis.images import Images
    from lit_robust.analysis.perturbation import perturbation_study
    from lit_robust.core.results import RunResults
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.data.packing.corrupting import chosen_cells
    from lit_robust.stimuli.corruption_names import CORRUPTIONS

    cells = chosen_cells(CORRUPTIONS if corruptions is None else corruptions, severities)
    clean = Images.open(data, split, EvaluationCrop(resize, crop), images)
    found = perturbation_study(clean, corrupted, cells, split, enlarged, batch)
    examples = found.save(output, "perturbation-size")
    RunResults({"name": output.name, "study": "perturbation-size"}, {}, list(found.results), examples).save(output)
    for one in found.results:
        print(f"{one.metric:<48} {one.value:.3f}")
    print(f"Wrote {output}.")


def analyze_frechet_distance(
    data: Path,
    other: Path,
    *,
    command: str,
    layer: str | None = None,
    other_split: str | None = None,
    studied: Studied = Studied(Path("runs/frechet-distance"), images=2000),
) -> None:
    """Measure how far apart two sets lie for a network: the Fréchet distance of its features of their images.

    A value belongs to its network, layer and number of images; that between two halves of the first set is sampling
    alone, and stands next to it.

    Args:
        data: folder of a set's shards, such as data/imagenet
        other: of another's, such as data/imagenet-a
        command: the command line
        layer: of the network, whose maps are averaged over their places; null for what the last linear layer is given
        other_split: of the other set; null for the same
        studied: the network, and the images of each set
    """
    from dataclasses import replace

    from lit_robust.analysis.distance import distance_study

    first = studied.open(data)
    second = replace(studied, split=other_split or studied.split).open(other)
    study = studied.begin("frechet-distance", command)
    network = study.build()
    found = distance_study(network, first, second, layer, studied.batch, second.protocol, study.device)
    study.finish(found)
    for one in found.results:
        print(f"{one.metric:<32} {one.value:.4g} of {one.count:,} images")


def analyze_attribution(
    data: Path,
    *,
    command: str,
    layer: str | None = None,
    studied: Studied = Studied(Path("runs/attribution"), images=64, batch=16),
) -> None:
    """Show where in images a network sees their classes, by Captum's integrated gradients and Grad-CAM.

    Needs the package captum: install lit-robust[attribution].

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        layer: of maps, for Grad-CAM, such as layer4; null leaves Grad-CAM out
        studied: the network, and the images
    """
    from lit_robust.analysis.attribution import attribution_study
    from lit_robust.models.taps import layer_of

    chosen = studied.open(data)
    study = studied.begin("attribution", command)
    classifier = study.build()
    mapped = None if layer is None else layer_of(classifier, layer)[0]
    taken, labels = chosen.whole()
    protocol = {**chosen.protocol, "layer": layer}
    study.finish(
        attribution_study(classifier, mapped, taken, labels, chosen.class_names, studied.batch, chosen.name, protocol)
    )


def analyze_fusion(
    data: Path,
    *,
    command: str,
    robust: Mapping[str, Any] = AS_IT_IS,
    studied: Studied = Studied(Path("runs/fusion"), images=5000, batch=64),
) -> None:
    """Choose the weight of a standard network fused with a robust one, by accuracy on images that no test uses.

    It prints the options that make any `lit-robust test` use the fused network.

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        network: the standard network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of
            `lit-robust fit` as weights says the rest itself
        robust: the robust network, likewise
        split: of the set; best one that is held out for this
        studied: the network, and the images
    """
    from dataclasses import asdict

    from lit_robust.analysis.fusing import fusion_study
    from lit_robust.cli.study import network_of
    from lit_robust.models import build_classifier

    chosen = studied.open(data)
    study = studied.begin("fusion", command)
    other = network_of(robust, "robust")
    second = build_classifier(other).eval().to(study.device)
    taken, labels = chosen.whole()
    protocol = {**chosen.protocol, "robust": asdict(other)}
    found = fusion_study(study.build(), second, taken, labels, studied.batch, chosen.name, protocol)
    study.finish(found)
    best = next(one.value for one in found.results if one.metric == "best_fusion_weight")
    parts = {
        part: {name: value for name, value in asdict(spec).items() if value is not None and name != "num_classes"}
        for part, spec in (("standard", study.network), ("robust", other))
    }
    arguments = json.dumps({**parts, "weight": best})
    print(
        f"The best weight is {best:g}. Test it on other images with --model.network.name lit_robust.models.fusion:fuse "
        f"--model.network.num_classes {other.num_classes} --model.network.arguments '{arguments}'"
    )
