"""Orhan & Lake 2019, "Improving the robustness of ImageNet classifiers using elements of human visual cognition"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_robust.cli.options import Count
from lit_robust.cli.papers.runs import Command, overlay, part, recipes, run

# corrected: any mistake counts, the steps cross the ball, and the last image is what is scored.
# code: what eminorhan/robust-vision ran: to a random class, ended at the first success, clean where it fails.
# text: the same, with eps as a share of each image's brightest value, as the paper's text defines it.
Protocol = Literal["corrected", "code", "text"]
FOOLBOX = {"eps": 0.06, "step_size": 0.00784314, "steps": 10}
ATTACKS: Mapping[Protocol, Mapping[str, Any]] = {
    "corrected": part("attacks.PGD", {"norm": "linf", "eps": 0.06, "step_size": 0.015, "steps": 10, "start": "ball"}),
    "code": part("attacks.CachePaperAttack", {**FOOLBOX, "eps_unit": "range"}),
    "text": part("attacks.CachePaperAttack", {**FOOLBOX, "eps_unit": "image_maximum"}),
}
EPS = (0.01, 0.02, 0.04, 0.08, 0.1)
RESNET18: Mapping[str, Any] = {"name": "torchvision/resnet18", "num_classes": 1000, "weights": "IMAGENET1K_V1"}
LOWER = "layer4_bottleneck1_relu"
STANDARD = "imagenet/standard"


@dataclass(frozen=True)
class Cached:
    """A backbone, its cache models, and the attack that they are measured under.

    Attributes:
        data: root of the sets
        network: the backbone
        theta: temperature of the retrieval, exp(theta times similarity); the callback ThetaSearch finds the best
        protocol: corrected: untargeted PGD, of which every image counts; code: what the paper's code ran; text: what
            its text says
        eps: besides the attack's own, 0.06; of black to white
        cache: recipe of the cache models
    """

    data: str = "data"
    network: str = "torchvision/resnet50"
    theta: float = 50
    protocol: Protocol = "corrected"
    eps: Sequence[float] = EPS
    cache: str = "imagenet/cache"

    def backbone(self, weights: str) -> list[str]:
        """Return the words that name the data and the backbone with these weights."""
        return ["--data.root", self.data, "--model.network.name", self.network, "--model.network.weights", weights]

    def measures(
        self,
        output: Path,
        name: str,
        threat_models: Sequence[str],
        surrogate: Mapping[str, Any] | None,
        *more: Mapping[str, Any],
    ) -> str:
        """Write the overlay with clean accuracy, that under attack in each threat model, and further evaluations."""
        callbacks = [part("callbacks.CleanAccuracy", {"dataset": "imagenet"})]
        for threat_model in threat_models:
            settings: dict[str, Any] = {
                "threat_model": threat_model,
                "attack": ATTACKS[self.protocol],
                "eps": list(self.eps),
                "dataset": "imagenet",
            }
            if threat_model == "black-box":
                settings["surrogate"] = surrogate
            callbacks.append(part("callbacks.AdversarialAccuracy", settings))
        return overlay(output, name, {"trainer": {"callbacks": [*callbacks, *more]}})

    def runs(
        self, output: Path, name: str, overlays: Sequence[str], network: Sequence[str], keys: Sequence[str]
    ) -> list[Command]:
        """Return the run that builds a memory, and the one that tests the cache model which asks it."""
        where = ["--model.memory", output / f"memory-{name}" / "memory", *keys]
        tested = [*recipes(self.cache, *overlays), *network, *where, "--model.retrieval.theta", self.theta]
        return [
            run(f"memory-{name}", "fit", *recipes(self.cache), *network, *where),
            run(f"cache-{name}", "test", *tested),
        ]


def cache_table_1(
    output: Path,
    /,
    *,
    cached: Cached = Cached(),
    texture: str = "IMAGENET1K_V1",
    shape: str | None = "shape-resnet50.pth.tar",
    layer: str = LOWER,
    surrogate: Mapping[str, Any] = RESNET18,
    backbone: str = STANDARD,
) -> list[Command]:
    """Orhan & Lake 2019, Table 1 and Figure 5: two backbones and their cache models, clean and attacked at six eps.

    The attacks are gray-box, black-box and white-box. A weights file of the shape-based network is Geirhos et al.'s.

    Args:
        output: folder of the runs
        cached: the backbone, its cache models and the attack
        texture: weights of the ResNet-50, a library's entry or a file
        shape: weights of Geirhos et al.'s Shape-ResNet-50; null leaves it out
        layer: of the keys
        surrogate: network that a black-box attack sees: name, num_classes, weights, mean, std
        backbone: recipe of a backbone on the same images
    """
    bare = cached.measures(output, "backbone", ["white-box", "black-box"], surrogate)
    whole = cached.measures(output, "memory", ["gray-box", "black-box", "white-box"], surrogate)
    runs = []
    for name, weights in {"texture": texture, "shape": shape}.items():
        if weights is not None:
            net = cached.backbone(weights)
            runs += [
                run(f"backbone-{name}", "test", *recipes(backbone, bare), *net),
                *cached.runs(output, name, [whole], net, ["--model.layer", layer]),
            ]
    return runs


def cache_table_2(
    output: Path,
    /,
    *,
    cached: Cached = Cached(),
    texture: str = "IMAGENET1K_V1",
    layer: str = LOWER,
    k: Count = 50,
    quarter: Count = 512,
    eighth: Count = 256,
    on: Literal["raw", "unit"] = "raw",
) -> list[Command]:
    """Orhan & Lake 2019, Table 2 and Figure 4: retrieval, dimensions and size of the memory, clean and gray-box.

    Two runs are added to the paper's six: the projections as its code did them, with queries that were not centred.

    Args:
        output: folder of the runs
        cached: the backbone, its cache models and the attack
        texture: weights of the ResNet-50, a library's entry or a file
        layer: of the keys
        k: neighbours
        quarter: dimensions, a quarter of the layer's
        eighth: dimensions, an eighth of the layer's
        on: vectors as the network gives them, or of unit length, are clustered and projected
    """
    tested = recipes(cached.cache, cached.measures(output, "memory", ["gray-box"], None))
    net, keys = cached.backbone(texture), ["--model.layer", layer]
    nearest = ["--model.retrieval.kind", "nearest", "--model.retrieval.k", k]
    whole = output / "memory" / "memory"

    def ask(name: str, memory: str, *retrieval: object) -> Command:
        where = ["--model.memory", output / memory / "memory", *keys, "--model.retrieval.theta", cached.theta]
        return run(name, "test", *tested, *net, *where, *retrieval)

    def smaller(name: str, how: str, *options: object) -> Command:
        made = output / f"memory-{name}" / "memory"
        return run(f"memory-{name}", "memory", how, whole, made, *options, "--on", on)

    runs = [
        run("memory", "fit", *recipes(cached.cache), *net, "--model.memory", whole, *keys),
        ask("continuous", "memory"),
        ask("nearest", "memory", *nearest),
    ]
    for factor in (4, 8):
        runs.append(smaller(f"clusters-{factor}", "cluster", "--factor", factor))
        runs.append(ask(f"nearest-clusters-{factor}", f"memory-clusters-{factor}", *nearest))
    for share, count in {"quarter": quarter, "eighth": eighth}.items():
        runs.append(smaller(share, "project", "--dimensions", count))
        runs.append(ask(f"nearest-{share}-dimensions", f"memory-{share}", *nearest))
    for share, count in {"quarter": quarter, "eighth": eighth}.items():
        runs.append(smaller(f"{share}-code", "project", "--dimensions", count, "--centring", "keys"))
        runs.append(ask(f"nearest-{share}-uncentred", f"memory-{share}-code", *nearest))
    return runs


def cache_figure_2(
    output: Path,
    /,
    *,
    cached: Cached = Cached(),
    weights: str = "IMAGENET1K_V1",
    last: str = "fc",
    pooled: str = "avgpool",
    lower: str = LOWER,
    surrogate: Mapping[str, Any] = RESNET18,
    backbone: str = STANDARD,
) -> list[Command]:
    """Orhan & Lake 2019, Figures 2 and 3: which layer gives the keys, under three threat models at six eps.

    Figure 3 is the same with a shape-based backbone's weights. The memory of logits next to that of probabilities shows
    what the white-box accuracy of the last layer is: obfuscated gradients (section 4.1).

    Args:
        output: folder of the runs
        cached: the backbone, its cache models and the attack
        weights: of the backbone, a library's entry or a file
        last: the layer of logits
        pooled: the layer of pooled features
        lower: the lower layer
        surrogate: network that a black-box attack sees: name, num_classes, weights, mean, std
        backbone: recipe of a backbone on the same images
    """
    bare = cached.measures(output, "backbone", ["white-box", "black-box"], surrogate)
    whole = cached.measures(output, "memory", ["gray-box", "black-box", "white-box"], surrogate)
    net = cached.backbone(weights)
    layers = [
        ("fc", last, "softmax"),
        ("fc-logits", last, "none"),
        ("avgpool", pooled, "none"),
        ("lower", lower, "none"),
    ]
    runs = [run("backbone", "test", *recipes(backbone, bare), *net)]
    for name, layer, transform in layers:
        keys = ["--model.layer", layer, "--model.transform", transform]
        runs += cached.runs(output, name, [whole], net, keys)
    return runs


def cache_table_4(
    output: Path,
    /,
    *,
    cached: Cached = Cached(),
    texture: str = "IMAGENET1K_V1",
    shape: str | None = "shape-resnet50.pth.tar",
    layer: str = LOWER,
    last: str = "fc",
    corrupted: str = "imagenet-c",
    baseline: str | None = "imagenet-c",
    resize: Count | None = 256,
    crop: Count | None = 224,
    workers: int = 8,
    backbone: str = STANDARD,
) -> list[Command]:
    """Orhan & Lake 2019, Tables 3 and 4: corruption errors of two backbones and of their cache models.

    The memories are of the probabilities (Table 3) and of the lower layer (Table 4). Accuracy under attack is
    added, gray-box with a memory and white-box without.

    Args:
        output: folder of the runs
        cached: the backbone, its cache models and the attack
        data: root of the sets imagenet/ and imagenet-c/
        texture: weights of the ResNet-50, a library's entry or a file
        shape: weights of Geirhos et al.'s Shape-ResNet-50; null leaves it out
        layer: of the keys of Table 4
        last: the layer of logits, of the keys of Table 3
        corrupted: folder of the corrupted images
        baseline: whose errors are 1: AlexNet's; null for accuracies alone
        resize: shorter side of ImageNet's images first, pixels, never of ImageNet-C's; null for none
        crop: then the centre, pixels; null for none
        workers: processes a rank
        backbone: recipe of a backbone on the same images
    """
    clean = {"evaluation": {"resize": resize, "crop": crop}, "num_workers": workers}
    members = [
        part("data.ImageNetDataModule", clean),
        part("data.ImageNetCDataModule", {"name": corrupted, "num_workers": workers}),
    ]
    sets = overlay(output, "sets", {"data": part("data.RobustnessSuite", {"members": members})})
    errors = {"dataset": corrupted, "baseline": baseline, "clean": "imagenet"}
    measure = part("callbacks.CorruptionEvaluation", errors)
    bare = cached.measures(output, "backbone", ["white-box"], None, measure)
    whole = cached.measures(output, "memory", ["gray-box"], None, measure)
    runs = []
    for name, weights in {"texture": texture, "shape": shape}.items():
        if weights is not None:
            net = cached.backbone(weights)
            probabilities = ["--model.layer", last, "--model.transform", "softmax"]
            runs += [
                run(f"backbone-{name}", "test", *recipes(backbone, bare, sets), *net),
                *cached.runs(output, f"{name}-fc", [whole, sets], net, probabilities),
                *cached.runs(output, name, [whole, sets], net, ["--model.layer", layer]),
            ]
    return runs
