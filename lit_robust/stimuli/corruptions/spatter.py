"""Spatter: drops of water or mud on the lens; edges, distances and histograms are computed as OpenCV does."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.stimuli.corruptions.shared import Draws, gaussian, to_bytes

TANGENT = 13573 / 2**15
"""OpenCV's fixed-point tangent of 22.5 degrees."""
STRAIGHT, DIAGONAL, KNIGHT = 1.0, 1.4, 2.1969
PER_STEP = (
    (KNIGHT - 2 * STRAIGHT, STRAIGHT),
    (2 * DIAGONAL - KNIGHT, KNIGHT - DIAGONAL),
    (KNIGHT - DIAGONAL, 2 * DIAGONAL - KNIGHT),
    (STRAIGHT, KNIGHT - 2 * STRAIGHT),
)
"""The shortest way is a mix of two neighbouring kinds of step, and its length the largest of these (across, down)."""


def neighbours(images: Tensor, mode: str) -> list[list[Tensor]]:
    """Return the nine shifted views of ``[B, 1, H, W]``: ``[down + 1][right + 1]`` is the pixel there."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode=mode)
    return [[padded[..., y : y + height, x : x + width] for x in range(3)] for y in range(3)]


def canny(images: Tensor, low: float, high: float) -> Tensor:
    """Find edges as ``cv2.Canny`` does with its 3 x 3 derivatives and the sum of their sizes.

    Args:
        images: ``[B, 1, H, W]`` float32, whole numbers of 0 to 255.
        low: an edge goes on where the gradient is larger.
        high: an edge starts where the gradient is larger.

    Returns:
        ``[B, 1, H, W]`` bool.
    """
    n = neighbours(images, "replicate")
    right = n[0][2] - n[0][0] + 2 * (n[1][2] - n[1][0]) + n[2][2] - n[2][0]
    down = n[2][0] - n[0][0] + 2 * (n[2][1] - n[0][1]) + n[2][2] - n[0][2]
    flat, steep = right.abs(), down.abs()
    size = flat + steep
    m = neighbours(size, "constant")
    level = steep < flat * TANGENT
    upright = steep > flat * (TANGENT + 2)
    same_sign = (right < 0) == (down < 0)
    crest = (size > m[0][2]) & (size > m[2][0]) & ~same_sign
    crest |= (size > m[0][0]) & (size > m[2][2]) & same_sign
    crest &= ~(level | upright)
    crest |= (size > m[1][0]) & (size >= m[1][2]) & level
    crest |= (size > m[0][1]) & (size >= m[2][1]) & upright
    possible = crest & (size > low)
    edge = crest & (size > high)
    while True:
        tall = F.pad(edge, (0, 0, 1, 1))
        tall = F.pad(tall[..., :-2, :] | tall[..., 1:-1, :] | tall[..., 2:, :], (1, 1, 0, 0))
        grown = (tall[..., :-2] | tall[..., 1:-1] | tall[..., 2:]) & possible
        if torch.equal(grown, edge):
            return edge
        edge = grown


def distance_to(marked: Tensor, limit: int) -> Tensor:
    """Return how far the nearest marked pixel is, in OpenCV's 5 x 5 measure (``DIST_L2``), and at most ``limit``.

    That measure counts steps of 1 to the side, 1.4 along the diagonal and 2.1969 of a knight. The nearest marked pixel
    of a column is the nearest to everything else in its row, so one scan down and one across suffice.

    Args:
        marked: ``[B, 1, H, W]`` bool.
        limit: in pixels.

    Returns:
        ``[B, 1, H, W]`` float32.
    """
    height, width = marked.shape[-2:]
    far = limit + 1
    rows = torch.arange(height, device=marked.device, dtype=torch.float32)[:, None]
    shown = marked.float()
    above = (shown * (rows + far)).cummax(dim=-2).values - far
    below = height + far - (shown * (height + far - rows)).flip(-2).cummax(dim=-2).values.flip(-2)
    vertical = torch.minimum(rows - above, below - rows).clamp_(max=far)
    padded = F.pad(vertical, (limit, limit, 0, 0), value=float(far))
    nearest = vertical.clamp(max=limit)
    for across in range(1, limit):
        left = padded[..., limit - across : limit - across + width]
        right = padded[..., limit + across : limit + across + width]
        down = torch.minimum(left, right)
        length = down + across * PER_STEP[0][0]  # Its second factor is 1.
        for per_across, per_down in PER_STEP[1:]:
            torch.maximum(length, down.mul(per_down).add_(across * per_across), out=length)
        torch.minimum(nearest, length, out=nearest)
    return nearest


def box_mean(images: Tensor) -> Tensor:
    """Return the mean of 3 x 3 pixels, float32; outside is the mirror image without the edge."""
    n = neighbours(images, "reflect")
    total = n[0][0] + n[0][1] + n[0][2] + n[1][0] + n[1][1] + n[1][2] + n[2][0] + n[2][1] + n[2][2]
    return total.div_(9)


def equalise(images: Tensor, levels: int) -> Tensor:
    """Spread the values so that each is the share of smaller ones, as ``cv2.equalizeHist`` does.

    Args:
        images: ``[B, 1, H, W]`` float32, whole numbers below ``levels``.
        levels: at most 256.

    Returns:
        ``[B, 1, H, W]`` float32, whole numbers of 0 to 255; an even image stays as it is.
    """
    codes = images.long()
    batch, count = len(images), images[0].numel()
    offsets = torch.arange(batch, device=images.device)[:, None] * levels
    histogram = torch.bincount((codes.view(batch, -1) + offsets).view(-1), minlength=batch * levels).view(batch, levels)
    first = (histogram > 0).float().argmax(dim=1, keepdim=True)
    lowest = histogram.gather(1, first)
    scale = 255.0 / (count - lowest).clamp(min=1).float()
    table = ((histogram.cumsum(1) - lowest).float() * scale).round_().clamp_(0, 255)
    even = lowest == count
    table = torch.where(even, first.float(), table)
    return table.gather(1, codes.view(batch, -1)).view_as(images)


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
    """Splash water (severities 1 to 3, brightens) or mud (4 and 5, covers)."""
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
