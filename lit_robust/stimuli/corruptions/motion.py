"""Motion blur: every pixel smeared along a line, as ImageMagick's ``-motion-blur`` does it."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.stimuli.corruptions.draws import Draws

RADIUS_AND_DEVIATION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
LARGEST_ANGLE = 45.0

FAINTEST = 1e-6
HALF_OF_16_BITS = 0.5 / 257  # Half a step of 16 bits, in grey levels of 8.


def line_taps(radius: int, deviation: float, angle: float) -> dict[tuple[int, int], float]:
    """Return where along its line a pixel gathers light, and how much.

    ImageMagick (``MagickCore/effect.c``, ``MotionBlurImage``) takes ``2 · radius + 1`` places from the pixel to one
    side, with the weights of half a Gaussian, each place rounded to whole pixels. Places that coincide are added up;
    weights below ``FAINTEST`` are left out.

    Args:
        radius: half the line's length in pixels.
        deviation: of the Gaussian, in pixels.
        angle: of the line in degrees, clockwise from the right.

    Returns:
        Weight by (down, right) in pixels; together 1.
    """
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    weights = [math.exp(-0.5 * (step / deviation) ** 2) for step in range(2 * radius + 1)]
    total = sum(weights)
    taps: dict[tuple[int, int], float] = {}
    for step, weight in enumerate(weights):
        if weight >= FAINTEST * total:
            place = math.ceil(step * sine - 0.5), math.ceil(step * cosine - 0.5)
            taps[place] = taps.get(place, 0.0) + weight
    kept = sum(taps.values())
    return {place: weight / kept for place, weight in taps.items()}


def smear(image: Tensor, taps: dict[tuple[int, int], float]) -> Tensor:
    """Add up shifted copies of an image; its outermost pixels go on outside.

    Args:
        image: ``[C, H, W]`` float32.
        taps: weight by (down, right).
    """
    height, width = image.shape[-2:]
    up, down = max(0, -min(y for y, _ in taps)), max(0, max(y for y, _ in taps))
    left, right = max(0, -min(x for _, x in taps)), max(0, max(x for _, x in taps))
    padded = F.pad(image[None], (left, right, up, down), mode="replicate")[0]
    out = torch.zeros_like(image)
    for (y, x), weight in taps.items():
        out.add_(padded[:, up + y : up + y + height, left + x : left + x + width], alpha=weight)
    return out


def motion_filter(images: Tensor, radius: int, deviation: float, angles: Tensor) -> Tensor:
    """Smear each image along its own angle.

    Args:
        images: ``[B, C, H, W]`` float32.
        radius: half the line's length in pixels.
        deviation: of the Gaussian along the line, in pixels.
        angles: ``[B]`` in degrees, clockwise from the right.

    Returns:
        ``[B, C, H, W]`` float32, whole numbers: ImageMagick rounds to 16 bits, and drops what 8 bits do not hold.
    """
    out = [
        smear(image, line_taps(radius, deviation, angle)) for image, angle in zip(images, angles.tolist(), strict=True)
    ]
    return torch.stack(out).add_(HALF_OF_16_BITS).floor_()


def motion_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Smear along a line within 45 degrees of the horizontal.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: the images' random numbers.
    """
    radius, deviation = RADIUS_AND_DEVIATION[severity - 1]
    angles = draws.uniform((), -LARGEST_ANGLE, LARGEST_ANGLE)
    return motion_filter(images.float(), radius, deviation, angles).to(torch.uint8)
