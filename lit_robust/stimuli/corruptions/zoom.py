"""Zoom: the middle of an image enlarged, and the blur of a lens that zooms during the exposure."""

import math

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes

STOP_AND_STEP = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))


def zoomed_share(size: int, factor: float) -> int:
    """Return how many of ``size`` pixels fill the frame after a zoom."""
    return math.ceil(size / factor)


def fill_frame(middle: Tensor, factor: float, height: int, width: int) -> Tensor:
    """Enlarge by linear interpolation and cut off what is too much.

    As ``scipy.ndimage.zoom`` of order 1: the enlarged corners lie on the old ones.

    Args:
        middle: ``[B, C, h, w]`` float32, ``h`` and ``w`` from ``zoomed_share``.
        factor: at least 1.
        height: of the frame.
        width: of the frame.

    Returns:
        ``[B, C, height, width]`` float32.
    """
    large = round(middle.shape[-2] * factor), round(middle.shape[-1] * factor)
    enlarged = F.interpolate(middle, size=large, mode="bilinear", align_corners=True)
    top, left = (large[0] - height) // 2, (large[1] - width) // 2
    return enlarged[..., top : top + height, left : left + width]


def clipped_zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of the images to their own size.

    Args:
        images: ``[B, C, H, W]`` float32.
        factor: at least 1.
    """
    height, width = images.shape[-2:]
    h, w = zoomed_share(height, factor), zoomed_share(width, factor)
    top, left = (height - h) // 2, (width - w) // 2
    return fill_frame(images[..., top : top + h, left : left + w], factor, height, width)


def zoom_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Average the image with itself at 7 to 16 zooms.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5; with it grows the largest zoom, from 1.11 to 1.3.
        draws: not used.
    """
    stop, step = STOP_AND_STEP[severity - 1]
    # The published code's ``arange`` steps over its stop by a rounding error at severity 1; hence the same call.
    factors = np.arange(1, stop, step)
    clean = images.float()
    total = clean.clone()
    for factor in factors.tolist():
        total += clipped_zoom(clean, factor)
    return to_bytes(total.div_(len(factors) + 1))
