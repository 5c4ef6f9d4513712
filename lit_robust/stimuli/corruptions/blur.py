"""Blurs: by a Gaussian, out of focus, through frosted glass, in motion as ImageMagick's, and by zooming."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.stimuli.corruptions.shared import Draws, convolve, gaussian, gaussian_weights, to_bytes

GAUSSIAN_DEVIATION = (1, 2, 3, 4, 6)
DEFOCUS_RADIUS_AND_SOFTENING = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))


def gaussian_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blur by a Gaussian of 1 to 6 pixels."""
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
    """Blur by a disk of 3 to 10 pixels' radius."""
    radius, softening = DEFOCUS_RADIUS_AND_SOFTENING[severity - 1]
    return to_bytes(convolve(images.float(), disk(radius, softening, images.device)))


GLASS_DEVIATION_REACH_ROUNDS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))


def glass_sources(step: Tensor, reach: int) -> Tensor:
    """Return which pixel of the old image each pixel of the new one shows after one round of copying.

    The published code visits the pixels from the last row and column to row and column ``reach + 1``, and means to swap
    each with a neighbour; on NumPy views the swap only copies the neighbour to the pixel. A pixel shows the *new*
    colour of a neighbour visited before it, so colours travel along chains. Here every pixel first points to its
    neighbour; then all pointers are followed at once, which doubles the steps taken each time.

    Args:
        step: ``[B, H, W]`` int, which neighbour: ``(dy + reach) · 2 · reach + dx + reach``, dy and dx from ``-reach``
            to ``reach - 1``.
        reach: how far a neighbour may be, in pixels.

    Returns:
        ``[B, H · W]`` int64, indices into the flattened image; the same as visiting one pixel after the other.
    """
    batch, height, width = step.shape
    count = height * width
    here = torch.arange(count, device=step.device).view(height, width)
    # Entries from ``count`` on stand for old pixels, and point to themselves.
    pointer = torch.cat([here.view(-1) + count, here.view(-1) + count]).repeat(batch, 1)
    rows, columns = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    move = step[:, rows, columns].long()
    neighbour = here[rows, columns] + (move // (2 * reach) - reach) * width + (move % (2 * reach) - reach)
    visited = torch.zeros(height, width, dtype=torch.bool, device=step.device)
    visited[rows, columns] = True
    before = visited.view(-1)[neighbour] & (neighbour > here[rows, columns])
    new = pointer[:, :count].view(batch, height, width)
    new[:, rows, columns] = neighbour + count * (~before)
    while True:
        further = pointer.gather(1, pointer[:, :count])
        if torch.equal(further, pointer[:, :count]):
            return further - count
        pointer[:, :count] = further


def glass_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blur, let every pixel take over a random neighbour's colour, blur again."""
    deviation, reach, rounds = GLASS_DEVIATION_REACH_ROUNDS[severity - 1]
    batch, channels, height, width = images.shape
    pixels = to_bytes(gaussian(images.float(), deviation)).view(batch, channels, -1)
    for _ in range(rounds):
        source = glass_sources(draws.integers((height, width), 4 * reach * reach), reach)
        pixels = pixels.gather(2, source[:, None].expand(-1, channels, -1))
    return to_bytes(gaussian(pixels.view_as(images).float(), deviation))


MOTION_RADIUS_AND_DEVIATION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
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
    """Smear along a line within 45 degrees of the horizontal."""
    radius, deviation = MOTION_RADIUS_AND_DEVIATION[severity - 1]
    angles = draws.uniform((), -LARGEST_ANGLE, LARGEST_ANGLE)
    return motion_filter(images.float(), radius, deviation, angles).to(torch.uint8)


ZOOM_STOP_AND_STEP = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))


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

    The largest zoom grows with the severity, from 1.11 to 1.3.
    """
    stop, step = ZOOM_STOP_AND_STEP[severity - 1]
    # The published code's ``arange`` steps over its stop by a rounding error at severity 1; hence the same call.
    factors = np.arange(1, stop, step)
    clean = images.float()
    total = clean.clone()
    for factor in factors.tolist():
        total += clipped_zoom(clean, factor)
    return to_bytes(total.div_(len(factors) + 1))
