"""How large corruptions are against adversarial perturbations (Orhan & Lake 2019, section 4.3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_robust.analysis.images import Images
from lit_robust.analysis.outcome import Outcome
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.data.loading.transforms import EvaluationCrop, centre_crop, resize
from lit_robust.metrics.intervals import mean_of


def normalised_size(corrupted: Tensor, clean: Tensor) -> Tensor:
    """Return ``||x' - x||_inf / ||x||_inf`` for each image, float32 ``[B]``, as that paper measures perturbations.

    Args:
        corrupted: float32 ``[B, C, H, W]`` in [0, 1].
        clean: the same images before; an image that is black everywhere has no size, and gives NaN.

    Raises:
        UserError: they are not of one shape.
    """
    if corrupted.shape != clean.shape:
        raise UserError(
            f"Images of shape {list(corrupted.shape[1:])} and {list(clean.shape[1:])} are not one before and after a "
            "corruption: set resize and crop to what the corrupted ones were made with."
        )
    largest = clean.flatten(1).amax(1)
    return torch.where(largest > 0, (corrupted - clean).flatten(1).abs().amax(1) / largest, torch.nan)


def misaligned(corrupted: Tensor, side: int) -> Tensor:
    """Return images as that paper's pipeline saw ImageNet-C's: enlarged, and the centre cut out to the old size.

    ImageNet-C's files have been cut out already, so what stands at a pixel then belongs to another place of the clean
    image, and the difference is mostly that of the places.

    Args:
        corrupted: uint8 ``[C, S, S]``.
        side: pixels to which the image is enlarged; 256 for 224.
    """
    return centre_crop(resize(corrupted, (side, side)), corrupted.shape[-1])


def perturbation_study(
    clean: Images, corrupted: Path, cells: Sequence[str], split: str, side: int | None, batch: int
) -> Outcome:
    """Measure the sizes of corruptions, aligned with the clean images and as that paper's pipeline saw them.

    Args:
        clean: the images before; those of the same names are looked up in each cell.
        corrupted: folder of the cells, in ImageNet-C's layout.
        cells: corruption and severity, such as ``fog/1``.
        split: of each cell's shards.
        side: pixels to which the corrupted images are enlarged for the misaligned sizes; None to leave those out.
        batch: images at once.

    Raises:
        UserError: a cell lacks an image, or they differ in size.
    """
    results, arrays = [], {}
    for cell in tqdm(cells, "perturbation-size", unit="cell"):
        corruption, severity = cell.split("/")
        for name, values in _sizes(clean, _of_same_names(clean, corrupted / cell, split), side, batch).items():
            found = mean_of(values)
            arrays[f"{corruption}-{severity}-{name}"] = values
            results.append(
                Result(
                    dataset=corrupted.name,
                    metric=f"perturbation_size_{name}_{corruption}_{severity}",
                    value=found.value,
                    unit="share of the largest value",
                    count=found.count,
                    protocol=_protocol(clean, name, side),
                    interval=found.interval,
                    facets={
                        "measure": "perturbation_size",
                        "norm": "linf",
                        "variant": name,
                        "corruption": corruption,
                        "severity": int(severity),
                    },
                    warnings=("Most of it is the shift of places.",) if name == "misaligned" else (),
                )
            )
    return Outcome(results, arrays)


def _protocol(clean: Images, name: str, side: int | None) -> Mapping[str, Any]:
    return {**clean.protocol, "enlarged_to": side if name == "misaligned" else None}


def _of_same_names(clean: Images, folder: Path, split: str) -> Images:
    """Return the images of a cell that have the names of the clean ones, in their order; folders do not matter."""
    cell = Images.open(folder, split, EvaluationCrop(None, None))
    places = {_stem(cell.split.table.key(number)): number for number in range(len(cell.split))}
    wanted = [_stem(clean.split.table.key(int(number))) for number in clean.numbers]
    missing = [name for name in wanted if name not in places]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} images, the first is {missing[0]}: give the clean set "
            "that these were made of."
        )
    return Images(cell.split, cell.crop, np.array([places[name] for name in wanted]), cell.name)


def _stem(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def _sizes(clean: Images, cell: Images, side: int | None, batch: int) -> dict[str, Tensor]:
    """Return the size of each image's corruption: aligned, and misaligned if wanted."""
    found: dict[str, list[Tensor]] = {}
    for places in np.array_split(np.arange(len(clean)), -(-len(clean) // batch)):
        before, after = (torch.stack([one[int(place)] for place in places]) for one in (clean, cell))
        seen = {"aligned": after}
        if side is not None:
            seen["misaligned"] = torch.stack([misaligned(image, side) for image in after])
        for name, images in seen.items():
            found.setdefault(name, []).append(normalised_size(images.float() / 255, before.float() / 255))
    return {name: torch.cat(parts) for name, parts in found.items()}
