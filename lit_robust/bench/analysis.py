"""Ablation and dissection against the ways of their peers, on the same images, with the same answers."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_robust.analysis.ablation import changed_decisions
from lit_robust.analysis.concepts import Concepts, open_concepts
from lit_robust.analysis.dissection import KEPT, Dissection, dissect
from lit_robust.analysis.layers import stages
from lit_robust.analysis.upsampling import bilinear
from lit_robust.bench.measuring import Figure, alternate, extra_memory, machine, ratio, table
from lit_robust.core.errors import UserError
from lit_robust.data.packing.concepts import write_concepts
from lit_robust.models import Classifier, Network, build_classifier
from lit_robust.models.taps import layer_of, outputs

CATEGORIES = 16
SHARE = 0.005


def bench_analysis(network: str, size: int, images: int, dissected: int, rounds: int) -> str:
    """Return the tables of both studies.

    Args:
        network: torchvision/<name> or timm/<name>, with random weights.
        size: side of the images, in pixels.
        images: that units are ablated for, one after another.
        dissected: images that units are dissected on.
        rounds: measurements of each contender.

    Raises:
        UserError: Captum is missing, or a peer answers otherwise.
    """
    torch.manual_seed(0)
    classifier = build_classifier(Network(network, 64)).eval()
    pixels = torch.rand(images, 3, size, size)
    layers = stages(classifier, pixels[:1])
    units = sum(one.shape[1] for one in outputs(classifier, pixels[:1], layers).values())
    title = f"{network}, {units} units of {len(layers)} layers at {size} px"
    ablated = _ablation(classifier, pixels, layers, rounds)
    with tempfile.TemporaryDirectory() as folder:
        write_concepts(Path(folder) / "set", 0, max(dissected, 9), size)
        concepts = open_concepts(Path(folder) / "set", dissected)
        compared = _dissection(classifier, concepts, layers, rounds)
        memory = extra_memory(_dissecting, (network, Path(folder) / "set", dissected))
    peak = Figure("peak memory of ours beyond the network", memory, "MiB", memory, memory)
    tables = [
        table(f"Units ablated for {images} images: {title}", list(ablated.values()), _ratios(ablated)),
        table(f"Units dissected on {dissected} images: {title}", [*compared.values(), peak], _ratios(compared)),
    ]
    return "\n\n".join([*tables, f"Measured on {machine(['torch', 'captum', 'numpy', 'pillow'])}"])


def _ratios(figures: dict[str, Figure]) -> dict[str, float]:
    ours = figures["ours"]
    return {name: ratio(ours, one) for name, one in figures.items() if name != "ours"}


def _decide(logits: Tensor) -> Tensor:
    return logits.softmax(1).reshape(len(logits), CATEGORIES, -1).mean(2).argmax(1)


def _ablation(classifier: Classifier, pixels: Tensor, layers: list[str], rounds: int) -> dict[str, Figure]:
    answers: dict[str, list[dict[str, Tensor]]] = {}

    def ours() -> float:
        begin = time.perf_counter()
        answers["ours"] = [changed_decisions(classifier, image[None], layers, _decide) for image in pixels]
        return time.perf_counter() - begin

    def theirs() -> float:
        begin = time.perf_counter()
        answers["captum"] = [_by_captum(classifier, image[None], layers) for image in pixels]
        return time.perf_counter() - begin

    figures = alternate({"ours": ours, "Captum's LayerFeatureAblation": theirs}, rounds, "s")
    for mine, other in zip(answers["ours"], answers["captum"], strict=True):
        for layer in layers:
            if not torch.equal(mine[layer], other[layer]):
                raise UserError(f"Captum's decisions for {layer} are others: choose another network or size.")
    return figures


@torch.no_grad()
def _by_captum(classifier: Classifier, image: Tensor, layers: list[str], units_at_once: int = 32) -> dict[str, Tensor]:
    """Return the same with the whole network run again for every unit, a batch of units at once."""
    try:
        from captum.attr import LayerFeatureAblation
    except ImportError as error:
        raise UserError("The peer of ablations is missing: install captum.") from error
    decided = _decide(classifier(image))

    def changes(images: Tensor) -> Tensor:
        return (_decide(classifier(images)) != decided).float()

    found = {}
    for layer in layers:
        module, _ = layer_of(classifier, layer)
        count = outputs(classifier, image, [layer])[layer].shape[1]
        mask = torch.arange(count)[None, :, None, None]
        peer = LayerFeatureAblation(changes, module)
        effect = peer.attribute(image, layer_mask=mask, perturbations_per_eval=units_at_once)
        found[layer] = effect[0, :, 0, 0] != 0
    return found


def _dissection(classifier: Classifier, concepts: Concepts, layers: list[str], rounds: int) -> dict[str, Figure]:
    found: dict[str, Dissection] = {}
    axes = dict.fromkeys(layers, bilinear)

    def ours(room: int) -> Callable[[], float]:
        def measure() -> float:
            begin = time.perf_counter()
            found["ours"] = dissect(classifier, concepts, layers, SHARE, axes, room=room)
            return time.perf_counter() - begin

        return measure

    def theirs() -> float:
        begin = time.perf_counter()
        answers = _by_lite(classifier, concepts, layers)
        taken = time.perf_counter() - begin
        for layer, both in answers.items():
            mine = found["ours"].tally.both[found["ours"].layers[layer]].numpy()
            # Pillow rounds its weights otherwise than torch: pixels at the threshold may differ.
            if np.abs(both - mine).sum() > 0.02 * mine.sum() + 10:
                raise UserError(f"NetDissect-Lite's way finds other intersections in {layer}.")
        return taken

    contenders = {"ours": ours(KEPT), "ours, nothing kept between passes": ours(0), "NetDissect-Lite's way": theirs}
    return alternate(contenders, rounds, "s")


@torch.no_grad()
def _by_lite(classifier: Classifier, concepts: Concepts, layers: list[str]) -> dict[str, NDArray[np.int64]]:
    """Return intersections as NetDissect-Lite finds them: files of float64 activations, and a resize per map.

    One pass of the network writes a file a layer; the thresholds are exact here, where its own come from a sketch.
    """
    sizes = {name: one.shape[1:] for name, one in outputs(classifier, _first(concepts), layers).items()}
    with tempfile.TemporaryDirectory() as folder:
        features = {
            name: np.memmap(f"{folder}/{name}", dtype=np.float64, mode="w+", shape=(len(concepts), *size))
            for name, size in sizes.items()
        }
        for numbers, images in concepts.batches(range(len(concepts)), 16):
            for name, maps in outputs(classifier, images, layers).items():
                features[name][numbers] = maps.double().numpy()
        return {name: _tallied(one, concepts) for name, one in features.items()}


def _first(concepts: Concepts) -> Tensor:
    return concepts.pixels(0)[None].float() / 255


def _tallied(features: NDArray[np.float64], concepts: Concepts) -> NDArray[np.int64]:
    count, units, *size = features.shape
    above = int(SHARE * count * size[0] * size[1])
    flat = np.asarray(features).transpose(1, 0, 2, 3).reshape(units, -1)
    limits = np.array([np.partition(row, len(row) - 1 - above)[len(row) - 1 - above] for row in flat])
    both = np.zeros((units, len(concepts.names)), dtype=np.int64)
    for number in range(count):
        labels, whole = concepts.labels(number)
        rows, columns = labels.shape[1:]
        for unit in range(units):
            values = features[number, unit]
            if values.max() <= limits[unit]:
                continue
            resized = Image.fromarray(values.astype(np.float32)).resize((columns, rows), Image.Resampling.BILINEAR)
            places = np.argwhere(np.asarray(resized) > limits[unit])
            counts = np.bincount(labels[:, places[:, 0], places[:, 1]].ravel(), minlength=len(concepts.names))
            counts[0] = 0
            both[unit] += counts
            both[unit, list(whole)] += len(places)
    return both


def _dissecting(network: str, folder: Path, dissected: int) -> Callable[[], None]:
    """Return a dissection to be weighed."""
    torch.manual_seed(0)
    classifier: Classifier = build_classifier(Network(network, 64)).eval()
    concepts = open_concepts(folder, dissected)
    layers = stages(classifier, _first(concepts))

    def work() -> None:
        dissect(classifier, concepts, layers, SHARE, dict.fromkeys(layers, bilinear))

    return work
