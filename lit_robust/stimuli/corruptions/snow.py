"""Snow: flakes drawn out by the wind over a bleached image."""

import torch
from torch import Tensor

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes
from lit_robust.stimuli.corruptions.motion import motion_filter
from lit_robust.stimuli.corruptions.zoom import fill_frame, zoomed_share

MEAN = (0.1, 0.2, 0.55, 0.55, 0.55)
DEVIATION = 0.3
ZOOM = (3, 2, 4, 4.5, 2.5)
THRESHOLD = (0.5, 0.5, 0.9, 0.85, 0.85)
BLUR_RADIUS_AND_DEVIATION = ((10, 4), (12, 4), (12, 8), (12, 8), (12, 12))
CLEAN_SHARE = (0.8, 0.7, 0.7, 0.65, 0.55)
ANGLES = (-135.0, -45.0)
LUMA = (0.299, 0.587, 0.114)


def flakes(height: int, width: int, severity: int, draws: Draws) -> Tensor:
    """Draw falling snow, an even black where there is none.

    Only the middle of the published code's noise map is ever seen, so no more than that is drawn.

    Returns:
        ``[B, 1, H, W]`` float32, whole numbers of 0 to 255.
    """
    zoom = ZOOM[severity - 1]
    middle = draws.normal((1, zoomed_share(height, zoom), zoomed_share(width, zoom)), MEAN[severity - 1], DEVIATION)
    layer = fill_frame(middle, zoom, height, width)
    layer = (layer * (layer >= THRESHOLD[severity - 1])).clamp_(0, 1).mul_(255).floor_()
    radius, deviation = BLUR_RADIUS_AND_DEVIATION[severity - 1]
    return motion_filter(layer, radius, deviation, draws.uniform((), *ANGLES))


def snow(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Bleach the image, and add one layer of snow as it is and once more turned by 180 degrees.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: the images' random numbers.
    """
    layer = flakes(images.shape[-2], images.shape[-1], severity, draws)
    clean = images.float()
    red, green, blue = clean[:, 0:1], clean[:, 1:2], clean[:, 2:3]
    grey = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    bleached = torch.maximum(clean, grey.mul_(1.5).add_(0.5 * 255))
    share = CLEAN_SHARE[severity - 1]
    return to_bytes(clean.mul_(share).add_(bleached, alpha=1 - share).add_(layer + layer.rot90(2, (-2, -1))))
