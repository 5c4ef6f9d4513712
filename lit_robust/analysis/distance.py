"""How far apart two sets lie for a network: the Fréchet distance of its features of their images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_robust.analysis.images import Images
from lit_robust.analysis.outcome import Outcome
from lit_robust.analysis.representation import Representation
from lit_robust.core.precision import full_precision
from lit_robust.core.results import Result
from lit_robust.metrics.shift import frechet_distance
from lit_robust.models import Classifier


def features(network: Classifier, images: Images, layer: str | None, batch: int, device: torch.device) -> Tensor:
    """Return the network's features of images, float32 ``[N, D]``, on the processor.

    Args:
        network: images in [0, 1] to logits, on the device.
        images: all of one size.
        layer: dotted name, whose maps are averaged over their places; None for what the last linear layer is given.
        batch: images at once.
        device: where to compute.

    Raises:
        UserError: there is no such layer, or the images are of several sizes.
    """
    represent = Representation.of(network, images.take([0]).to(device), layer, straight_through=False)
    with torch.inference_mode(), full_precision(device.type):
        return torch.cat(
            [represent(some.to(device)).cpu() for _, some in images.batches(batch, f"features of {images.name}")]
        )


def distance_study(
    network: Classifier,
    first: Images,
    second: Images,
    layer: str | None,
    batch: int,
    protocol: Mapping[str, Any],
    device: torch.device,
) -> Outcome:
    """Measure the Fréchet distance of two sets, and between two halves of the first, which is sampling alone.

    Args:
        network: images in [0, 1] to logits, on the device.
        first: a set, such as ImageNet's validation images.
        second: another.
        layer: see `features`.
        batch: images at once.
        protocol: of the second set.
        device: where to compute.

    Raises:
        UserError: see `features`; or a set has fewer than four images.
    """
    one, other = (features(network, images, layer, batch, device) for images in (first, second))
    halves = frechet_distance(one[::2], one[1::2])
    warnings = [
        f"It falls with the number of images, of which {first.name} has {len(one)} and {second.name} {len(other)}: "
        "take as many of both."
    ] * (len(one) != len(other))
    if min(len(one), len(other)) <= one.shape[1]:
        warnings.append(
            f"There are not more images than the {one.shape[1]} dimensions: most of it may be sampling, see the halves."
        )
    about = {
        **protocol,
        "layer": layer or "penultimate",
        "dimensions": one.shape[1],
        "other": {"set": first.name, **first.protocol, "count": len(one)},
    }
    results = [
        Result(
            dataset=images.name,
            metric=f"frechet_distance_{name}",
            value=value,
            unit="squared features",
            count=count,
            protocol=about,
            facets={"measure": "frechet_distance", "between": name, "layer": layer or "penultimate"},
            warnings=tuple(warnings) if name == "sets" else (),
        )
        for name, images, value, count in (
            ("sets", second, frechet_distance(one, other), len(other)),
            ("halves", first, halves, len(one)),
        )
    ]
    return Outcome(results, {first.name: one, f"{second.name}_other": other})
