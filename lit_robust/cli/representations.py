"""``lit-robust analyze inversion`` and its like: studies of representations; typed functions, as in ``commands``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_robust.cli.options import Count, Seed, made

if TYPE_CHECKING:
    from lit_robust.analysis.images import Images
    from lit_robust.analysis.representations import Subject
    from lit_robust.cli.study import Study

AS_IT_IS: Mapping[str, Any] = {}
INVERSION: Mapping[str, Any] = {"norm": "l2", "step_size": 1.0, "steps": 10_000, "precision": "fp32"}
VISUALISATION: Mapping[str, Any] = {**INVERSION, "steps": 200}
MANIPULATION: Mapping[str, Any] = {**INVERSION, "step_size": 0.1, "steps": 800}


def analyze_inversion(
    data: Path,
    *,
    command: str,
    network: Mapping[str, Any] = AS_IT_IS,
    judge: Mapping[str, Any] = AS_IT_IS,
    output: Path = Path("runs/inversion"),
    layer: str | None = None,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    images: Count = 64,
    starts: Literal["noise", "images"] = "noise",
    repeats: Count = 2,
    within: Sequence[float] = (),
    search: Mapping[str, Any] = INVERSION,
    rectified: bool = False,
    batch: Count = 32,
    seed: Seed = 0,
) -> None:
    """Search for images that have the representations of others (Engstrom et al. 2019, section 4.1).

    Any set may be inverted, one of other classes than the network's too. A call that was interrupted goes on.

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        judge: a second network, likewise, that says what it sees in the inversions; as it is for none
        output: folder for results.json, arrays and pictures
        layer: of the representation; null for what the last linear layer is given
        split: of the set
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        images: how many are inverted, drawn once and for all
        starts: noise around grey; or images, for each target another one of the set, of another class
        repeats: inversions from different noise; 2 or more to tell how much they depend on it
        within: largest distances from the start, [0, 1] pixel units of the norm, each a search of its own (Figure 4)
        search: norm, step_size (in [0, 1] pixel units of the norm), steps, and precision: fp32, or bf16, in which a
            distance comes no nearer than about 0.01
        rectified: leave the gradient of the last ReLU as it is; the paper lets the gradient pass
        batch: images at once
        seed: of the noise
    """
    from lit_robust.analysis.ascent import Settings
    from lit_robust.analysis.images import Images
    from lit_robust.analysis.representations import inversion_study, within_eps
    from lit_robust.cli.study import Study, network_of
    from lit_robust.data.loading.transforms import EvaluationCrop

    settings = made(Settings, "search", search)
    for eps in within:
        within_eps(settings, eps)
    chosen = Images.open(data, split, EvaluationCrop(resize, crop), images)
    study = Study("inversion", output, command, network_of(network))
    subject = _subject(study, chosen, judge, layer, rectified, batch, seed)
    study.finish(inversion_study(subject, starts, repeats, within, settings))


def analyze_interpolation(
    data: Path,
    *,
    command: str,
    network: Mapping[str, Any] = AS_IT_IS,
    judge: Mapping[str, Any] = AS_IT_IS,
    output: Path = Path("runs/interpolation"),
    layer: str | None = None,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    images: Count = 16,
    points: Count = 10,
    search: Mapping[str, Any] = INVERSION,
    rectified: bool = False,
    batch: Count = 32,
    seed: Seed = 0,
) -> None:
    """Go from image to image through the representation, beside the mean of their pixels (section A.5, Figure 12).

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        judge: a second network, likewise, that says what it sees on the way; as it is for none
        output: folder for results.json, arrays and pictures
        layer: of the representation; null for what the last linear layer is given
        split: of the set
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        images: how many paths; each leads to an image of another class
        points: of a path, both ends among them
        search: norm, step_size (in [0, 1] pixel units of the norm), steps, and precision: fp32, or bf16, in which a
            distance comes no nearer than about 0.01
        rectified: leave the gradient of the last ReLU as it is; the paper lets the gradient pass
        batch: images at once
        seed: recorded; nothing is drawn
    """
    from lit_robust.analysis.ascent import Settings
    from lit_robust.analysis.images import Images
    from lit_robust.analysis.representations import interpolation_study
    from lit_robust.cli.study import Study, network_of
    from lit_robust.data.loading.transforms import EvaluationCrop

    settings = made(Settings, "search", search)
    chosen = Images.open(data, split, EvaluationCrop(resize, crop), images)
    study = Study("interpolation", output, command, network_of(network))
    subject = _subject(study, chosen, judge, layer, rectified, batch, seed)
    study.finish(interpolation_study(subject, points, settings))


def analyze_visualisation(
    data: Path,
    *,
    command: str,
    network: Mapping[str, Any] = AS_IT_IS,
    judge: Mapping[str, Any] = AS_IT_IS,
    output: Path = Path("runs/visualisation"),
    layer: str | None = None,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    images: Count = 512,
    units: Sequence[int] = (),
    count: Count = 16,
    starts: Count = 4,
    search: Mapping[str, Any] = VISUALISATION,
    rectified: bool = False,
    batch: Count = 32,
    seed: Seed = 0,
) -> None:
    """Raise units of a representation from images and from noise, without any prior (section 4.2, Figures 7 and 8).

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        judge: a second network, likewise, that says what it sees in the images; as it is for none
        output: folder for results.json, arrays and pictures
        layer: of the representation; null for what the last linear layer is given
        split: of the set
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        images: among which those are found that excite a unit most
        units: which are raised, from 0; [] to draw some
        count: units that are drawn of those that some image excites
        starts: images, and as many of noise, that each unit is raised from
        search: norm, step_size (in [0, 1] pixel units of the norm), steps, and precision: fp32, or bf16, in which a
            distance comes no nearer than about 0.01
        rectified: leave the gradient of the last ReLU as it is; the paper lets the gradient pass
        batch: images at once
        seed: of noise and units
    """
    from lit_robust.analysis.ascent import Settings
    from lit_robust.analysis.images import Images
    from lit_robust.analysis.representations import visualisation_study
    from lit_robust.cli.study import Study, network_of
    from lit_robust.data.loading.transforms import EvaluationCrop

    settings = made(Settings, "search", search)
    chosen = Images.open(data, split, EvaluationCrop(resize, crop), images)
    study = Study("visualisation", output, command, network_of(network))
    subject = _subject(study, chosen, judge, layer, rectified, batch, seed)
    study.finish(visualisation_study(subject, units, count, starts, settings))


def analyze_manipulation(
    data: Path,
    *,
    command: str,
    network: Mapping[str, Any] = AS_IT_IS,
    output: Path = Path("runs/manipulation"),
    layer: str | None = None,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    images: Count = 8,
    units: Sequence[int] = (),
    count: Count = 4,
    rule: Literal["text", "code"] = "text",
    search: Mapping[str, Any] = MANIPULATION,
    rectified: bool = False,
    batch: Count = 32,
    seed: Seed = 0,
) -> None:
    """Add a feature to images and leave the rest of them (section 4.2.1, Figure 11).

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        output: folder for results.json, arrays and pictures
        layer: of the representation; null for what the last linear layer is given
        split: of the set
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        images: that each feature is added to
        units: the features, from 0; [] to draw some
        count: features that are drawn of those that some image has
        rule: text: it ends as soon as the feature is the highest of all; code: as soon as it is 1, as the paper's code
            has it
        search: norm, step_size (in [0, 1] pixel units of the norm), steps, and precision: fp32, or bf16, in which a
            distance comes no nearer than about 0.01
        rectified: leave the gradient of the last ReLU as it is; the paper lets the gradient pass
        batch: images at once
        seed: of the units
    """
    from lit_robust.analysis.ascent import Settings
    from lit_robust.analysis.images import Images
    from lit_robust.analysis.representations import manipulation_study
    from lit_robust.cli.study import Study, network_of
    from lit_robust.data.loading.transforms import EvaluationCrop

    settings = made(Settings, "search", search)
    chosen = Images.open(data, split, EvaluationCrop(resize, crop), images)
    study = Study("manipulation", output, command, network_of(network))
    subject = _subject(study, chosen, {}, layer, rectified, batch, seed)
    study.finish(manipulation_study(subject, units, count, images, rule, settings))


def _subject(
    study: "Study",
    images: "Images",
    judge: Mapping[str, Any],
    layer: str | None,
    rectified: bool,
    batch: int,
    seed: int,
) -> "Subject":
    """Open all that a study of representations begins with; the images first, for they are quick to be wrong."""
    import numpy as np
    import torch

    from lit_robust.analysis.inversion import Work
    from lit_robust.analysis.representation import Representation
    from lit_robust.analysis.representations import Subject
    from lit_robust.cli.study import network_of
    from lit_robust.models import build_classifier

    taken = images.take(np.arange(len(images)))
    second = build_classifier(network_of(judge, "judge")).eval().to(study.device) if judge else None
    represent = Representation.of(study.build(), taken[:1].to(study.device), layer, not rectified)
    return Subject(
        represent=represent,
        images=taken,
        labels=torch.from_numpy(images.labels).long(),
        names=images.class_names,
        dataset=images.name,
        protocol={**images.protocol, "seed": seed, "judge": dict(judge) or None},
        judge=second,
        seed=seed,
        work=Work(batch, study.output / "parts", progress=True),
    )
