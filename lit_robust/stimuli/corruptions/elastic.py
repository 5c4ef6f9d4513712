"""Elastic transform: an affine distortion, then one that differs from place to place."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes
from lit_robust.stimuli.corruptions.filters import gaussian

SHIFT_SMOOTHNESS_AFFINE = (
    (2.0, 0.7, 0.1),
    (2.0, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
)
"""Shares of 244 pixels, for images of 224; the published code's slip, which the published images carry."""

TRUNCATE = 3.0


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

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: the images' random numbers.
    """
    height, width = images.shape[-2:]
    shift, smoothness, affine = (
        share * 244 / 224 * min(height, width) for share in SHIFT_SMOOTHNESS_AFFINE[severity - 1]
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
    field = gaussian(draws.uniform((2, height, width), -1.0, 1.0), smoothness, TRUNCATE, "reflect")
    for axis, (line, size) in enumerate(((columns, width), (rows, height))):
        scale, start = grid_scale(size, edge_twice=True)
        torch.add(line * scale + start, field[:, axis], alpha=shift * scale, out=grid[..., axis])
    return to_bytes(F.grid_sample(turned, grid, padding_mode="reflection", align_corners=False))
