"""Tables and figures that compare networks: of Chen, Agarwal & Nguyen 2020, and of Hendrycks et al. 2021."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lit_robust.cli.options import Count
from lit_robust.cli.papers.runs import Run, overlay, part, recipes, run

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
) -> list[Run]:
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
) -> list[Run]:
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


def _tests(
    output: Path,
    name: str,
    callbacks: Sequence[Mapping[str, Any]],
    suite: Mapping[str, Any],
    base: str,
    data: str,
    networks: Networks,
) -> list[Run]:
    """Return a test for each network, with the same evaluations on the same sets."""
    settings = {"trainer": {"callbacks": callbacks}, "data": part("data.RobustnessSuite", suite)}
    words = ["test", *recipes(base, overlay(output, name, settings)), "--data.root", data]
    return [run(row, *words, "--model.network", network) for row, network in networks.items() if network is not None]
