"""The shortest way from an image to a hyperplane that stays in the box of all images."""

import torch
from torch import Tensor

from lit_robust.attacks.norms import Norm

# A handful is usual. Each pass goes beyond a kink or ends, and kinks that lie in series are of ever smaller slope.
MOST_PASSES = 200


def move_to_hyperplane(points: Tensor, normals: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the shortest moves from points to a hyperplane within [0, 1], float32 ``[B, C, H, W]``.

    A move ``d`` has ``normals . d = gap`` and ``0 <= points + d <= 1``. Where no point of the box is on the hyperplane,
    it leads to the box's corner nearest to it. Pixels without a normal stay.

    Croce and Hein 2020 (FAB; ``fab_projections.py`` of fra31/auto-attack) sort the pixels by when they reach the box's
    wall. Here the length of the move is found by Newton's method: the way gained towards the plane is concave and
    piecewise linear in that length, so Newton's steps from 0 never overshoot, and end on the piece that holds the
    solution.

    Args:
        points: float32 ``[B, C, H, W]`` in [0, 1].
        normals: the same shape.
        gap: float32 ``[B]``; the hyperplane's offset less ``normals . points``, which may be of either sign.
        norm: what a move's length is measured in.
    """
    # A largest normal of 1 keeps tiny gradients from vanishing in the products.
    scale = normals.abs().amax((1, 2, 3)).clamp_min(torch.finfo(normals.dtype).tiny)
    towards = torch.where(gap < 0, -1, 1) / scale
    normals, gap = normals * towards.view(-1, 1, 1, 1), gap * towards
    # A move of some length changes each pixel by its speed times that length, until the wall stops it.
    heading = norm.normalise(normals)
    speed, pull = heading.abs(), normals.abs()
    room = torch.where(heading > 0, 1 - points, points)
    length = torch.zeros_like(gap)
    for _ in range(MOST_PASSES):
        path = speed * length.view(-1, 1, 1, 1)
        slope = (pull * speed * (path < room)).sum((1, 2, 3))
        left = gap - (pull * torch.minimum(path, room)).sum((1, 2, 3))
        longer = torch.where((slope > 0) & (left > 0), length + left / slope, length)
        # What is left below a millionth is rounding. This read of the accelerator saves most of the passes.
        over = bool((longer <= length * (1 + 1e-6)).all())
        length = longer
        if over:
            break
    return heading.sign() * torch.minimum(speed * length.view(-1, 1, 1, 1), room)
