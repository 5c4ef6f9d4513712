"""Fog: a fractal height map laid over the image."""

import torch
from torch import Tensor

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes

AMOUNT_AND_DECAY = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))


def plasma(size: int, decay: float, draws: Draws) -> Tensor:
    """Draw fractal height maps by diamonds and squares; they go on over their edges.

    Every finer point is the mean of its four neighbours and a random number of up to ``wobble²`` to either side, where
    ``wobble`` starts at 100 and falls by ``decay`` with each halving of the distance.

    Args:
        size: of the map, a power of two.
        decay: above 1; the larger, the smoother.
        draws: the images' random numbers.

    Returns:
        ``[B, size, size]`` float32, least height 0 and largest 1.
    """
    noise = draws.uniform((size, size), -1.0, 1.0)
    heights = torch.zeros_like(noise)
    step, wobble = size, 100.0
    while step >= 2:
        half = step // 2
        # What is added at this level: each point of the map is written once, so one random map serves all levels.
        corners = heights[:, ::step, ::step]
        right_sum = corners + corners.roll(-1, 1)
        square_sum = right_sum + right_sum.roll(-1, 2)
        middle = heights[:, half::step, half::step]
        middle.copy_(square_sum.mul_(0.25).add_(noise[:, half::step, half::step], alpha=wobble**2))
        across = (middle + middle.roll(1, 1)).add_(corners + corners.roll(-1, 2))
        heights[:, ::step, half::step] = across.mul_(0.25).add_(noise[:, ::step, half::step], alpha=wobble**2)
        down = (middle + middle.roll(1, 2)).add_(corners + corners.roll(-1, 1))
        heights[:, half::step, ::step] = down.mul_(0.25).add_(noise[:, half::step, ::step], alpha=wobble**2)
        step, wobble = half, wobble / decay
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    return heights.div_(heights.amax(dim=(1, 2), keepdim=True))


def fog(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Add fog, then scale down so that the brightest value of the image under the thickest fog stays as it was.

    The published map has 256 points for 224 pixels; for other sizes it has the next power of two.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: the images' random numbers.
    """
    amount, decay = AMOUNT_AND_DECAY[severity - 1]
    height, width = images.shape[-2:]
    size = 1 << (max(height, width) - 1).bit_length()
    heights = plasma(size, decay, draws)[:, None, :height, :width]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True).float()
    scale = brightest / (brightest + 255 * amount)
    return to_bytes((images + heights * (255 * amount)).mul_(scale))
