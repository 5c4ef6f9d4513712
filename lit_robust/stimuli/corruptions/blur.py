"""Blur by a Gaussian and by a lens out of focus."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes
from lit_robust.stimuli.corruptions.filters import convolve, gaussian, gaussian_weights

GAUSSIAN_DEVIATION = (1, 2, 3, 4, 6)
DEFOCUS_RADIUS_AND_SOFTENING = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))


def gaussian_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blur by a Gaussian of 1 to 6 pixels.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: not used.
    """
    return to_bytes(gaussian(images.float(), GAUSSIAN_DEVIATION[severity - 1]))


@lru_cache(maxsize=8)
def disk(radius: int, softening: float, device: torch.device) -> Tensor:
    """Return a disk, softened by a small Gaussian.

    At radius 8 and 10 the published code lets the disk touch the edge of its window, and mirrors there without the edge
    for the softening. So its kernel does not sum to 1 there, and brightens the image by about 1 %; so does this.

    Returns:
        ``[17, 17]`` float32 up to radius 8, else ``[2 · radius + 1, 2 · radius + 1]``.
    """
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    line = np.arange(-reach, reach + 1)
    inside = (line[:, None] ** 2 + line[None, :] ** 2 <= radius**2).astype(np.float64)
    inside /= inside.sum()
    soft = gaussian_weights(softening, taps)
    for axis in (0, 1):
        wide = np.pad(inside, [(taps, taps) if axis == a else (0, 0) for a in (0, 1)], mode="reflect")
        inside = sum(weight * np.take(wide, np.arange(len(line)) + k, axis) for k, weight in enumerate(soft))
    return torch.from_numpy(inside.astype(np.float32)).to(device)


def defocus_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blur by a disk of 3 to 10 pixels' radius.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: not used.
    """
    radius, softening = DEFOCUS_RADIUS_AND_SOFTENING[severity - 1]
    return to_bytes(convolve(images.float(), disk(radius, softening, images.device)))
