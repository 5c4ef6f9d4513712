"""The review sheet of a filtered set: its images, what the first filter network said, and where it looked."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lit_robust.analysis.attribution import grad_cam
from lit_robust.core.files import write_text
from lit_robust.data.filtration import FilterCrops, FilterNetwork
from lit_robust.data.loading.splits import Reading, open_index, table_split
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.models.taps import layer_of
from lit_robust.report.review import Reviewed, sheet
from lit_robust.shards import decode_rgb


def write_review(
    folder: Path,
    split: str,
    names: Sequence[str],
    images: Sequence[Mapping[str, Any]],
    first: FilterNetwork,
    cuts: FilterCrops,
    heat_layer: str | None,
) -> None:
    """Write ``review.html`` next to the shards of a filtered set.

    Args:
        folder: of the set.
        split: of its shards.
        names: of the classes; empty for their numbers.
        images: what the filtration says of each image, in the shards' order.
        first: whose answers and heat maps are shown.
        cuts: resize and crop.
        heat_layer: layer of Grad-CAM; null for no heat maps.
    """
    opened = table_split(open_index(folder, split, Reading()), split)
    crop = EvaluationCrop(cuts.resize, cuts.crop)
    shown = []
    for number, about in enumerate(images):
        reader, row = opened.table.find(number)
        pixels = crop(decode_rgb(reader.image_bytes(row), reader.name(row)))
        heat = None
        if heat_layer is not None:
            heat = _heat(first, heat_layer, pixels.contiguous()[None].float() / 255, about["predicted"][0])
        shown.append(Reviewed(about["key"], _image(pixels), heat, _lines(about, names)))
    command = f"lit-robust data filter apply {shlex.quote(str(folder))} decisions.json OUTPUT --split {split}"
    write_text(folder / "review.html", sheet(folder.name, opened.protocol["shards_sha256"], shown, command))


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _lines(about: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return what the sheet says of an image: label, first answer and confidences."""

    def named(number: int) -> str:
        return names[number] if 0 <= number < len(names) else str(number)

    answer = f"answered {named(about['predicted'][0])} ({about['highest_confidence'][0]:.2f})"
    if about["label"] < 0:
        return [about["key"], answer]
    truth = f"is {named(about['label'])} ({max(about['true_confidence']):.2f} at most)"
    return [about["key"], truth, answer]


def _heat(first: FilterNetwork, layer: str, images: Tensor, answer: int) -> Image.Image:
    """Return the image under Grad-CAM's map of the answer, red where the network looks."""
    module, _ = layer_of(first.network, layer)
    device = next(first.network.parameters()).device
    with torch.no_grad():
        outputs = first.network(images.to(device)).shape[1]
    own = first.classes.index(answer) if outputs == len(first.classes) else answer
    classes = torch.tensor([own], device=device)
    heat = grad_cam(first.network, module, images.to(device), classes)[0].cpu()
    heat = heat / heat.max().clamp(min=1e-12)
    grey = images[0].mean(0, keepdim=True).expand(3, -1, -1) * 0.6
    red = torch.stack([heat, torch.zeros_like(heat), 1 - heat]) * 0.4
    return _image((grey + red).clamp(0, 1).mul(255).byte())
