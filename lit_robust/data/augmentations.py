"""Augmentations of one decoded image, on uint8, in a worker process."""

import numpy as np
import torch
from torch import Tensor

MEAN_COLOUR = (124, 116, 104)  # ImageNet's mean in levels: after the normalisation almost 0, as in the public code.


def cutout(pixels: Tensor, side: int, random: np.random.Generator) -> Tensor:
    """Cut a square hole, cut off at the border, whose centre is anywhere in the image (uoguelph-mlrg/Cutout).

    Args:
        pixels: uint8 ``[3, H, W]``; left as they are.
        side: of the hole, in pixels; odd sides are one shorter.
        random: source of the centre.

    Returns:
        The image with ImageNet's mean colour in the hole.
    """
    height, width = pixels.shape[1:]
    row, column = int(random.integers(height)), int(random.integers(width))
    half = side // 2
    result = pixels.clone()
    hole = result[:, max(row - half, 0) : row + half, max(column - half, 0) : column + half]
    hole[:] = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).view(3, 1, 1)
    return result
