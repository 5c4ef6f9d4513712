"""Losses of storing and sending: coarse pixels and JPEG."""

import io
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_robust.stimuli.corruptions.draws import Draws

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
    """Make the image smaller and large again, both as Pillow's ``BOX`` filter does, to the bit.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: not used.
    """
    height, width = images.shape[-2:]
    rows, columns = int(height * PIXELATE_SHARE[severity - 1]), int(width * PIXELATE_SHARE[severity - 1])
    small = box_shrink(box_shrink(images, columns, -1), rows, -2).to(torch.uint8)
    wide = small.index_select(-1, nearest_indices(columns, width, images.device))
    return wide.index_select(-2, nearest_indices(rows, height, images.device))


def jpeg_compression(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Encode and decode with Pillow, whose default halves the resolution of colour (4:2:0); always on the CPU.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5; with it falls the quality, from 25 to 7.
        draws: not used.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    out = np.empty_like(pixels)
    for source, target in zip(pixels, out, strict=True):
        file = io.BytesIO()
        Image.fromarray(source).save(file, "JPEG", quality=JPEG_QUALITY[severity - 1])
        with Image.open(file) as picture:
            target[:] = np.asarray(picture)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous().to(images.device)
