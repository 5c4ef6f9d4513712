"""`lit-robust data cue-conflict`: makes a set, and measures whether its sources and it are recognised."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_robust.cli.options import Count, Seed, made
from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from lit_robust.data.packing.conflicts import ConflictSet, StyleTransfer
    from lit_robust.metrics import ShapeBias
    from lit_robust.models.network import Classifier

VGG19: Mapping[str, Any] = {"name": "torchvision/vgg19", "num_classes": 1000, "weights": "pretrained"}
# relu1_1, relu2_1, relu3_1 and relu4_1 for the texture, relu4_2 for the content.
VGG19_LAYERS: Mapping[str, Any] = {
    "style_layers": ["features.1", "features.6", "features.11", "features.20"],
    "content_layer": "features.22",
}
Method = Literal["gatys", "adain", "magenta"]


def data_cue_conflict(
    output: Path,
    *,
    contents: Path,
    textures: Path,
    method: Method = "gatys",
    each: Count = 5,
    network: Mapping[str, Any] = VGG19,
    gatys: Mapping[str, Any] = VGG19_LAYERS,
    vgg: Path | None = None,
    decoder: Path | None = None,
    resize: Count | None = 256,
    crop: Count = 224,
    tiles: Count = 1,
    seed: Seed = 0,
    batch: Count = 4,
    workers: Seed = 0,
    device: str = "cpu",
    judge: Mapping[str, Any] | None = None,
    categories: str = "imagenet",
    least: float = 0.5,
) -> None:
    """Make cue-conflict images of your own: all ordered pairs of categories, those without conflict, too.

    Files and folders are named as in the published set. A second call makes what is missing.

    Args:
        output: folder to write; `lit-robust data shard OUTPUT ... --layout cue-conflict` packs it
        contents: folder with a folder of images for each category, best of an object on white ground
        textures: folder with a folder of pictures of texture for each category, such as skin
        method: gatys: by optimisation, as the published set was made; adain, magenta: in one pass, whose
            strokes and colours rarely tell what a texture is of
        each: images an ordered pair of categories
        network: of gatys, whose features say what texture is: name, num_classes, weights, mean, std; not one that is to
            be tested on the images
        gatys: style_layers, content_layer, content_weight, steps, optimiser (adam or lbfgs), learning_rate, start
            (content or noise) and seed
        vgg: of adain, file vgg_normalised.pth
        decoder: of adain, file decoder.pth
        resize: shorter side of contents and textures first, pixels; null for none
        crop: then the centre, pixels
        tiles: copies of a texture picture along each side
        seed: of the choice of contents and textures
        batch: images at a time
        workers: processes, each of which makes a batch at a time; 0 for this one
        device: cpu or cuda
        judge: another network, by which the sources and the images are judged: name, num_classes, weights, mean, std
        categories: the judge's classes of each category: imagenet, or a JSON file {"category": [classes]}
        least: share of contents, and of textures, that the judge must recognise; with less the set is marked as weak
    """
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.data.packing.conflicts import ConflictSet, make_conflicts
    from lit_robust.models import Network

    if method == "gatys":
        transfer = _gatys(network, gatys, device)
    else:
        transfer = _adain(vgg, decoder, device) if method == "adain" else _magenta(device)
    one = ConflictSet(
        contents=contents,
        textures=textures,
        folder=output,
        transfer=transfer,
        crop=EvaluationCrop(resize, crop),
        tiles=tiles,
        each=each,
        seed=seed,
        batch=batch,
    )
    count = make_conflicts(one, workers)
    print(f"Made {count:,} of {len(one.pairs):,} images in {output}.")
    if judge is None:
        print("Whether they show two cues is not measured: --judge.name and --judge.weights name a network that tells.")
    else:
        print(_judged(one, made(Network, "judge", judge), categories, least, device))
    print(f"Pack them: lit-robust data shard {output} DATA/cue-conflict --split test --layout cue-conflict")


def _gatys(network: Mapping[str, Any], settings: Mapping[str, Any], device: str) -> "StyleTransfer":
    from lit_robust.data.packing.transfers import GatysTransfer
    from lit_robust.models import Network
    from lit_robust.stimuli.gatys import Gatys

    return GatysTransfer(
        network=made(Network, "network", network), settings=made(Gatys, "gatys", settings), device=device
    )


def _adain(vgg: Path | None, decoder: Path | None, device: str) -> "StyleTransfer":
    from lit_robust.data.packing.transfers import AdaInNetworks, FeedForwardTransfer

    if vgg is None or decoder is None:
        raise UserError("adain needs --vgg and --decoder: name the files vgg_normalised.pth and decoder.pth.")
    return FeedForwardTransfer(networks=AdaInNetworks(vgg=vgg, decoder=decoder, device=device), device=device)


def _magenta(device: str) -> "StyleTransfer":
    from lit_robust.data.packing.transfers import FeedForwardTransfer, MagentaNetworks

    return FeedForwardTransfer(networks=MagentaNetworks(device=device), device=device)


def _judged(one: "ConflictSet", judge: Any, categories: str, least: float, device: str) -> str:
    """Measure how often a network recognises a set's contents and textures, and what it says of its images.

    A set whose sources the network does not know says nothing of its bias. The counts are written to ``gate.json``.

    Args:
        one: the set.
        judge: the network.
        categories: its classes of each category.
        least: share of each kind of source that it must recognise.
        device: where to compute.

    Returns:
        What was found, in sentences.

    Raises:
        UserError: a category of the set has no classes.
    """
    import torch

    from lit_robust.data.packing.recognise import read_categories
    from lit_robust.metrics import ShapeBias
    from lit_robust.models import build_classifier
    from lit_robust.models.weights import weights_digest
    from lit_robust.shards import decode_rgb

    if not 0 <= least <= 1:
        raise UserError(f"least is {least}: give a share from 0 to 1.")
    known = read_categories(categories)
    names = list(known)
    if unknown := sorted({*one.images[0], *one.images[1]} - known.keys()):
        raise UserError(f"The judge's categories lack {', '.join(unknown)}: rename the folders, or give --categories.")
    network = build_classifier(judge).eval().to(device)
    metric = ShapeBias(known).to(device)
    used = [sorted({(p.shape, p.content) for p in one.pairs}), sorted({(p.texture, p.pattern) for p in one.pairs})]
    said: dict[str, Any] = {"judge": judge.name, "weights_sha256": weights_digest(network.network), "least": least}
    for what, sources, read in zip(("contents", "textures"), used, (one.content, one.texture), strict=True):
        images = [read(*source) for source in sources]
        decided = _decisions(network, metric, images, device)
        right = sum(names[decision] == source[0] for decision, source in zip(decided, sources, strict=True))
        said[what] = {"count": len(sources), "recognised": right}
    images = [torch.from_numpy(decode_rgb(one.path(p).read_bytes(), p.name)).permute(2, 0, 1) for p in one.pairs]
    counts = dict.fromkeys(("shape", "texture", "other", "right without conflict", "wrong without conflict"), 0)
    for pair, decision in zip(one.pairs, _decisions(network, metric, images, device), strict=True):
        answer = names[decision]
        if pair.shape == pair.texture:
            counts[f"{'right' if answer == pair.shape else 'wrong'} without conflict"] += 1
        else:
            counts["shape" if answer == pair.shape else "texture" if answer == pair.texture else "other"] += 1
    said["decisions"] = counts
    shares = [said[what]["recognised"] / said[what]["count"] for what in ("contents", "textures")]
    said["weak"] = min(shares) < least
    write_text(one.folder / "gate.json", json.dumps(said, indent=1) + "\n")
    seen = ", ".join(f"{said[what]['recognised']} of {said[what]['count']} {what}" for what in ("contents", "textures"))
    weak = f" That is less than {least:.0%} of one kind: the set is weak." if said["weak"] else ""
    decided_as = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{judge.name} recognises {seen}.{weak} It decides {decided_as}."


def _decisions(network: "Classifier", metric: "ShapeBias", images: "Sequence[Tensor]", device: str) -> list[int]:
    import torch

    found: list[int] = []
    with torch.inference_mode():
        for begin in range(0, len(images), 32):
            batch = torch.stack(list(images[begin : begin + 32])).to(device)
            found += metric.decide(network(batch / 255)).tolist()
    return found
