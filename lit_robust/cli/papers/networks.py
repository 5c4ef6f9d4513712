"""Tables and figures that compare networks: of Chen, Agarwal & Nguyen 2020, and of Hendrycks et al. 2021."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lit_robust.cli.options import Count
from lit_robust.cli.papers.runs import Command, overlay, part, recipes, run
from lit_robust.core.errors import UserError

Networks = Mapping[str, Mapping[str, Any] | None]


def _net(name: str, weights: str) -> Mapping[str, Any]:
    return {"name": name, "num_classes": 1000, "weights": weights}


SHAPE: Networks = {
    "alexnet-standard": _net("torchvision/alexnet", "IMAGENET1K_V1"),
    "alexnet-robust": _net("torchvision/alexnet", "alexnet-robust.pt"),
    "googlenet-standard": _net("torchvision/googlenet", "IMAGENET1K_V1"),
    "googlenet-robust": _net("torchvision/googlenet", "googlenet-robust.pt"),
    "resnet50-standard": _net("torchvision/resnet50", "IMAGENET1K_V1"),
    "resnet50-pgd1": _net("torchvision/resnet50", "resnet50-advprop-pgd1.pth.tar"),
    "resnet50-pgd5": _net("torchvision/resnet50", "resnet50-advprop-pgd5.pth.tar"),
    "resnet50-robust": _net("torchvision/resnet50", "resnet50_l2_eps3.ckpt"),
}
NATURAL: Networks = {  # `pretrained` are the library's weights, which are not always the paper's.
    "alexnet": _net("torchvision/alexnet", "pretrained"),
    "squeezenet": _net("torchvision/squeezenet1_1", "pretrained"),
    "vgg16": _net("torchvision/vgg16", "pretrained"),
    "vgg19-bn": _net("torchvision/vgg19_bn", "pretrained"),
    "densenet121": _net("torchvision/densenet121", "pretrained"),
    "resnet50": _net("torchvision/resnet50", "IMAGENET1K_V1"),
    "resnet101": _net("torchvision/resnet101", "IMAGENET1K_V1"),
    "resnet152": _net("torchvision/resnet152", "IMAGENET1K_V1"),
    "resnext50": _net("torchvision/resnext50_32x4d", "IMAGENET1K_V1"),
    "resnext101": _net("torchvision/resnext101_32x8d", "IMAGENET1K_V1"),
    "se-resnet50": _net("timm/seresnet50", "pretrained"),
    "res2net50-v1b": _net("timm/res2net50d", "pretrained"),
    "res2net101-v1b": _net("timm/res2net101d", "pretrained"),
    "deit-small": _net("timm/deit_small_patch16_224", "pretrained"),
    "deit-base": _net("timm/deit_base_patch16_224", "pretrained"),
}
FILTERS: Networks = {name: NATURAL[name] for name in ("resnet50", "vgg16", "densenet121", "deit-small")}


def shape_tables_1_2(
    output: Path,
    /,
    *,
    data: str = "data",
    networks: Networks = SHAPE,
    eps: float = 3.0,
    step_size: float = 0.5,
    steps: Count = 7,
    categories: str = "imagenet",
    resize: Count | None = 256,
    crop: Count | None = 224,
    workers: int = 8,
    base: str = "eval/quick",
) -> list[Command]:
    """Chen, Agarwal & Nguyen 2020, Tables 1 and 2: accuracy, accuracy under PGD-L2, and shape or texture bias.

    Of standard (S), AdvProp and robust (R) networks of three architectures, with files of your own or another lab's for
    those that no library has.

    Args:
        output: folder of the runs
        data: root of the sets imagenet/ and cue-conflict/
        networks: name of a row to its network: name, num_classes, weights, mean, std; null leaves a row out, as in
            --networks.alexnet-robust null, and --networks.resnet50-robust.weights FILE changes one part of one
        eps: of PGD in L2, in [0, 1] pixel units
        step_size: of PGD, in the units of eps
        steps: of PGD
        categories: which classes are which category: imagenet, shards, or a file
        resize: shorter side of ImageNet's images first, pixels; the cue-conflict images have their size
        crop: then the centre, pixels; null for none
        workers: processes a rank
        base: recipe of logger, devices and whatever else does not follow from here
    """
    attack = part("attacks.PGD", {"norm": "l2", "eps": eps, "step_size": step_size, "steps": steps})
    callbacks = [
        part("callbacks.CleanAccuracy", {"dataset": "imagenet"}),
        part("callbacks.AdversarialAccuracy", {"dataset": "imagenet", "attack": attack}),
        part("callbacks.ShapeBiasEvaluation", {"dataset": "cue-conflict"}),
    ]
    images = {"evaluation": {"resize": resize, "crop": crop}, "num_workers": workers}
    cues = {"categories": categories, "evaluation": {"resize": None, "crop": None}, "num_workers": workers}
    members = [part("data.ImageNetDataModule", images), part("data.CueConflictDataModule", cues)]
    return _tests(output, "tables", callbacks, {"members": members}, base, data, networks)


def natural_figures_2_8(
    output: Path,
    /,
    *,
    data: str = "data",
    networks: Networks = NATURAL,
    classes: Literal["200", "all"] = "200",
    missing: Literal["skip", "error"] = "skip",
    resize: Count | None = 256,
    crop: Count | None = 224,
    workers: int = 8,
    base: str = "eval/quick",
) -> list[Command]:
    """Hendrycks et al. 2021, Figures 2, 7 and 8: accuracy on ImageNet-A, and AUPR on ImageNet-O.

    Of augmentations and of architectures, with calibration on ImageNet-A. Weights of a library come from its server at
    the first call.

    Args:
        output: folder of the runs
        data: root of the sets imagenet/, imagenet-a/ and imagenet-o/
        networks: name of a row to its network: name, num_classes, weights, mean, std; null leaves a row out, as in
            --networks.deit-base null, and --networks.resnet50.weights FILE changes one part of one
        classes: those of either set that a decision is taken among; all for other sets than ImageNet's
        missing: skip leaves out a set that is not there, and says so; or error
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        workers: processes a rank
        base: recipe of logger, devices and whatever else does not follow from here
    """
    callbacks = [
        part("callbacks.CleanAccuracy", {"dataset": "imagenet"}),
        part("callbacks.CleanAccuracy", {"dataset": "imagenet-a"}),
        part("callbacks.CalibrationEvaluation", {"dataset": "imagenet-a"}),
        part("callbacks.OodEvaluation", {"dataset": "imagenet-o", "known": "imagenet"}),
    ]
    images = {"evaluation": {"resize": resize, "crop": crop}, "num_workers": workers}
    of_a, of_o = ("all", "all") if classes == "all" else ("imagenet-a", "imagenet-o")
    members = [
        part("data.ImageNetDataModule", images),
        part("data.ImageNetADataModule", {"classes": of_a, **images}),
        # In distribution are imagenet's images.
        part("data.ImageNetODataModule", {"classes": of_o, "in_distribution": None, **images}),
    ]
    return _tests(output, "figures", callbacks, {"missing": missing, "members": members}, base, data, networks)


def natural_transfer(
    output: Path,
    /,
    *,
    data: str = "data",
    networks: Networks = FILTERS,
    filters: Sequence[str] = ("resnet50",),
    pool: str = "imagenet",
    split: str = "val",
    classes: str = "all",
    resize: Count | None = 256,
    crop: Count = 224,
    most_confidence: float = 0.15,
    per_confusion: Count = 15,
    workers: int = 8,
) -> list[Command]:
    """Hendrycks et al. 2021, section 3: what each stage leaves of a pool, and whether each network's set fools others.

    The pool is to be of images that no network was trained on: those that it was, it filters away itself.

    Args:
        output: folder of the runs
        data: root of the pool
        networks: name of a row to its network: name, num_classes, weights, mean, std; null leaves a row out
        filters: names of those that filter the set together, whose sizes per stage and review sheet are in hard/
        pool: its folder below the root
        split: of the pool
        classes: all of the networks'; imagenet-a or imagenet-o, those 200; or numbers, as 3,5,8
        resize: shorter side first, pixels; null for none
        crop: side of each of the ten crops, pixels
        most_confidence: an image leaves where a crop gives the true class more, a fraction
        per_confusion: images of one class that are given one answer, the least confident first
        workers: processes that decode
    """
    used = {name: network for name, network in networks.items() if network is not None}
    if unknown := [name for name in filters if name not in used]:
        raise UserError(f"The filter {unknown[0]} is none of the networks {', '.join(used)}: name some of these.")
    rule: list[object] = [
        "--split",
        split,
        "--classes",
        classes,
        "--resize",
        resize,
        "--crop",
        crop,
        "--workers",
        workers,
    ]
    rule += ["--most-confidence", most_confidence, "--per-confusion", per_confusion]
    made, where = {kind: output / kind for kind in ("hard", "transfer")}, f"{data}/{pool}"
    some = {name: used[name] for name in filters}
    return [
        run("hard", "data", "filter", "hard", where, made["hard"], "--networks", some, *rule),
        run("transfer", "data", "filter", "transfer", where, made["transfer"], "--networks", used, *rule),
    ]


def _tests(
    output: Path,
    name: str,
    callbacks: Sequence[Mapping[str, Any]],
    suite: Mapping[str, Any],
    base: str,
    data: str,
    networks: Networks,
) -> list[Command]:
    """Return a test for each network, with the same evaluations on the same sets."""
    settings = {"trainer": {"callbacks": callbacks}, "data": part("data.RobustnessSuite", suite)}
    words = ["test", *recipes(base, overlay(output, name, settings)), "--data.root", data]
    return [run(row, *words, "--model.network", network) for row, network in networks.items() if network is not None]
