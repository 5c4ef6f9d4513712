"""Digital changes: brightness, contrast, saturation, coarse pixels, JPEG, and elastic stretching.

Brightness and saturation are defined in hue, saturation and value; with hue and one of the others held, every channel
changes by one factor, so no conversion is needed: ``x = V - (V - x)``, where ``V - x`` is proportional to S · V.
"""

import io
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lit_robust.stimuli.corruptions.shared import Draws, gaussian, to_bytes

BRIGHTNESS_GAIN = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST_FACTOR = (0.4, 0.3, 0.2, 0.1, 0.05)
SATURATION_FACTOR_AND_GAIN = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))


def brightness(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Raise the value (the largest channel) and keep hue and saturation."""
    gain = 255 * BRIGHTNESS_GAIN[severity - 1]
    old = images.amax(dim=1, keepdim=True).float()
    # Black has no saturation and becomes grey; no factor does that, so it is added.
    black = old == 0
    factor = (old + gain).clamp_(max=255).div_(old.clamp(min=1))
    return to_bytes(images * factor + black * gain)


def saturate(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Change the saturation, ``(V - min) / V``, and keep hue and value.

    Grey has no hue; scikit-image calls that 0, which is red, and so does this: from severity 4 on grey turns reddish.
    """
    factor, gain = SATURATION_FACTOR_AND_GAIN[severity - 1]
    clean = images.float()
    value = clean.amax(dim=1, keepdim=True)
    spread = value - clean.amin(dim=1, keepdim=True)
    new = (spread * factor).add_(value, alpha=gain).minimum(value)
    grey = spread == 0
    ratio = new / spread.clamp_(min=1)
    below = (value - clean).mul_(ratio)
    if gain:
        below[:, 1:] += grey * new
    return to_bytes(value - below)


def contrast(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Move every channel towards its mean over the image."""
    factor = CONTRAST_FACTOR[severity - 1]
    count = images.shape[-2] * images.shape[-1]
    # Sums of integers are the same in any order, so the mean does not depend on the batch.
    mean = images.sum(dim=(2, 3), keepdim=True, dtype=torch.int64).double().div_(count)
    return to_bytes((images * factor).add_((mean * (1 - factor)).float()))


PIXELATE_SHARE = (0.6, 0.5, 0.4, 0.3, 0.25)
JPEG_QUALITY = (25, 18, 15, 10, 7)


@lru_cache(maxsize=64)
def box_windows(large: int, small: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which pixels Pillow's ``BOX`` filter averages when it shrinks an axis (``libImaging/Resample.c``).

    Returns:
        First pixel of each window and the one after its last, ``[small]`` int64 each.
    """
    scale = large / small
    middles = (np.arange(small) + 0.5) * scale
    inside = (np.arange(large)[None, :] - middles[:, None] + 0.5) / scale
    member = (inside > -0.5) & (inside <= 0.5)
    first = member.argmax(axis=1)
    return torch.from_numpy(first).to(device), torch.from_numpy(first + member.sum(axis=1)).to(device)


def box_shrink(images: Tensor, size: int, axis: int) -> Tensor:
    """Average along one axis as Pillow's ``BOX`` filter does, rounded to whole numbers, halves up.

    Args:
        images: ``[B, C, H, W]``, whole numbers of 0 to 255.
        size: of that axis afterwards.
        axis: -1 or -2.

    Returns:
        float32 with whole numbers.
    """
    first, end = box_windows(images.shape[axis], size, images.device)
    shape = [1, 1, 1, 1]
    shape[axis] = size
    reach = int((end - first).max())
    total = images.index_select(axis, first).float()
    for step in range(1, reach):
        place = first + step
        pixel = images.index_select(axis, place.clamp(max=images.shape[axis] - 1))
        total.add_(pixel * (place < end).to(pixel.dtype).view(shape))
    return total.mul_((1 / (end - first)).float().view(shape)).add_(0.5).floor_()


def nearest_indices(small: int, large: int, device: torch.device) -> Tensor:
    """Return ``[large]`` int64: which pixel the ``BOX`` filter shows where it enlarges an axis."""
    return torch.from_numpy(((np.arange(large) + 0.5) * (small / large)).astype(np.int64)).to(device)


def pixelate(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Make the image smaller and large again, both as Pillow's ``BOX`` filter does, to the bit."""
    height, width = images.shape[-2:]
    rows, columns = int(height * PIXELATE_SHARE[severity - 1]), int(width * PIXELATE_SHARE[severity - 1])
    small = box_shrink(box_shrink(images, columns, -1), rows, -2).to(torch.uint8)
    wide = small.index_select(-1, nearest_indices(columns, width, images.device))
    return wide.index_select(-2, nearest_indices(rows, height, images.device))


def jpeg_compression(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Encode and decode with Pillow, whose default halves the resolution of colour (4:2:0); always on the CPU.

    The quality falls with the severity, from 25 to 7.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    out = np.empty_like(pixels)
    for source, target in zip(pixels, out, strict=True):
        file = io.BytesIO()
        Image.fromarray(source).save(file, "JPEG", quality=JPEG_QUALITY[severity - 1])
        with Image.open(file) as picture:
            target[:] = np.asarray(picture)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous().to(images.device)


ELASTIC_SHIFT_SMOOTHNESS_AFFINE = (
    (2.0, 0.7, 0.1),
    (2.0, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
)
"""Shares of 244 pixels, for images of 224; the published code's slip, which the published images carry."""

ELASTIC_TRUNCATE = 3.0


def affine_from_points(before: Tensor, after: Tensor) -> Tensor:
    """Return the affine maps that carry three points to three others.

    Args:
        before: ``[B, 3, 2]``, not on one line.
        after: ``[B, 3, 2]``.

    Returns:
        ``[B, 2, 3]`` float64.
    """
    ones = torch.ones_like(before[..., :1])
    maps: Tensor = torch.linalg.solve(torch.cat([before, ones], dim=-1).double(), after.double())
    return maps.transpose(1, 2)


def grid_scale(size: int, edge_twice: bool) -> tuple[float, float]:
    """Return by what to multiply a place in pixels, and what to add, for ``grid_sample``'s -1 to 1.

    Args:
        size: pixels along the axis.
        edge_twice: whether the mirror image outside repeats the outermost pixels.
    """
    return (2 / size, 1 / size - 1) if edge_twice else (2 / (size - 1), -1.0)


def elastic_transform(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Distort: three points move by a random step each, and every pixel by a smoothed random field.

    Lengths are shares of the image's smaller side.
    """
    height, width = images.shape[-2:]
    shift, smoothness, affine = (
        share * 244 / 224 * min(height, width) for share in ELASTIC_SHIFT_SMOOTHNESS_AFFINE[severity - 1]
    )
    middle_x, middle_y, arm = float(width // 2), float(height // 2), float(min(height, width) // 3)
    before = torch.tensor(
        [[middle_x + arm, middle_y + arm], [middle_x + arm, middle_y - arm], [middle_x - arm, middle_y - arm]]
    ).expand(len(images), -1, -1)
    after = before + draws.uniform((3, 2), -affine, affine).cpu()
    back = affine_from_points(after, before).float().to(images.device)[:, :, :, None, None]
    columns = torch.arange(width, device=images.device, dtype=torch.float32)
    rows = torch.arange(height, device=images.device, dtype=torch.float32)[:, None]
    grid = torch.empty(len(images), height, width, 2, device=images.device)
    for axis, size in enumerate((width, height)):
        scale, start = grid_scale(size, edge_twice=False)
        by_column, by_row, still = (back[:, axis, k] * scale for k in range(3))
        torch.add(by_column * columns, by_row * rows + (still + start), out=grid[..., axis])
    turned = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=True)
    field = gaussian(draws.uniform((2, height, width), -1.0, 1.0), smoothness, ELASTIC_TRUNCATE, "reflect")
    for axis, (line, size) in enumerate(((columns, width), (rows, height))):
        scale, start = grid_scale(size, edge_twice=True)
        torch.add(line * scale + start, field[:, axis], alpha=shift * scale, out=grid[..., axis])
    return to_bytes(F.grid_sample(turned, grid, padding_mode="reflection", align_corners=False))
