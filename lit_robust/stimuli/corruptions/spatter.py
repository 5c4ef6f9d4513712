"""Spatter: drops of water or mud on the lens."""

import torch
from torch import Tensor

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes
from lit_robust.stimuli.corruptions.edges import box_mean, canny, distance_to, equalise, neighbours
from lit_robust.stimuli.corruptions.filters import gaussian

MEAN = (0.65, 0.65, 0.65, 0.65, 0.67)
DEVIATION = (0.3, 0.3, 0.3, 0.3, 0.4)
SMOOTHNESS = (4, 3, 2, 1, 1)
THRESHOLD = (0.69, 0.68, 0.68, 0.65, 0.65)
WATER_STRENGTH = (0.6, 0.6, 0.5)
"""Of severities 1 to 3; 4 and 5 are mud."""
MUD_SMOOTHNESS, MUD_THRESHOLD = 1.5, 0.8
WATER = (175.0, 238.0, 238.0)
MUD = (63.0, 42.0, 20.0)

EDGE_LOW, EDGE_HIGH = 50, 150
FARTHEST = 20
RELIEF = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def water_light(liquid: Tensor) -> Tensor:
    """Return how brightly each pixel of the drops shines: a relief lit from one corner.

    Args:
        liquid: ``[B, 1, H, W]`` float32, thickness, 0 where dry.

    Returns:
        ``[B, 1, H, W]`` float32 of 0 to 1, the brightest 1, or 0 everywhere where an image got no drop.
    """
    thickness = (liquid * 255).floor_().remainder_(256)
    distance = distance_to(canny(thickness, EDGE_LOW, EDGE_HIGH), FARTHEST)
    height = equalise(box_mean(distance).add_(1e-4).floor_(), FARTHEST + 1)
    n = neighbours(height, "reflect")
    relief = torch.zeros_like(height)
    for row, weights in zip(n, RELIEF, strict=True):
        for pixel, weight in zip(row, weights, strict=True):
            relief.add_(pixel, alpha=weight)
    light = thickness * box_mean(relief.clamp_(0, 255)).round_()
    return light / light.amax(dim=(1, 2, 3), keepdim=True).clamp_(min=1)


def spatter(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Splash water (severities 1 to 3, brightens) or mud (4 and 5, covers).

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: the images' random numbers.
    """
    kind = severity - 1
    noise = draws.normal((1, *images.shape[-2:]), MEAN[kind], DEVIATION[kind])
    liquid = gaussian(noise, SMOOTHNESS[kind])
    wet = liquid >= THRESHOLD[kind]
    clean = images.float()
    if kind < len(WATER_STRENGTH):
        light = water_light(liquid * wet).mul_(WATER_STRENGTH[kind])
        return to_bytes(clean + light * torch.tensor(WATER, device=images.device)[:, None, None])
    cover = gaussian(wet.float(), MUD_SMOOTHNESS)
    cover = cover * (cover >= MUD_THRESHOLD)
    return to_bytes(clean * (1 - cover) + cover * torch.tensor(MUD, device=images.device)[:, None, None])
