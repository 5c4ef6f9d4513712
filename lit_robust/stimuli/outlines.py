"""Twelve outlines a glance tells apart: which points of the plane lie inside.

Only addition, multiplication and comparison are used: IEEE 754 settles their every bit, while sines and exponentials
differ in the last bit between processors, and one bit is enough to move a pixel.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Outline = Callable[[Plane, Plane], Mask]

TRAINED = ("disc", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
NOVEL = ("arrow", "hourglass", "bolt", "house")

_STAR = (
    *((0.0, 1.2), (0.3056, 0.4206), (1.1413, 0.3708), (0.4945, -0.1607), (0.7053, -0.9708)),
    *((0.0, -0.52), (-0.7053, -0.9708), (-0.4945, -0.1607), (-1.1413, 0.3708), (-0.3056, 0.4206)),
)
_TRIANGLE = ((0.0, 1.15), (1.1, -0.75), (-1.1, -0.75))
_ARROW = ((0.0, 1.1), (0.95, 0.1), (0.38, 0.1), (0.38, -1.0), (-0.38, -1.0), (-0.38, 0.1), (-0.95, 0.1))
_HOURGLASS = ((-0.85, 1.0), (0.85, 1.0), (0.2, 0.0), (0.85, -1.0), (-0.85, -1.0), (-0.2, 0.0))
_BOLT = ((-0.1, 1.15), (-0.95, -0.35), (-0.2, -0.35), (-0.6, -1.25), (0.95, 0.15), (0.2, 0.15), (0.75, 1.05))
_HOUSE = ((0.0, 1.1), (0.95, 0.25), (0.62, 0.25), (0.62, -0.9), (-0.62, -0.9), (-0.62, 0.25), (-0.95, 0.25))


def inside(name: str, x: Plane, y: Plane) -> Mask:
    """Return which points lie inside an outline.

    Every outline has its middle near the origin, reaches about 1 from it (at most 1.4), and covers an area of 1.7 to
    2.3, so that neither place nor size names it.

    Args:
        name: one of ``TRAINED`` or ``NOVEL``.
        x: ``[...]`` abscissae, to the right.
        y: ``[...]`` ordinates, upwards; broadcast against ``x``.

    Returns:
        ``[...]`` bool, true inside.
    """
    return _OUTLINES[name](x, y)


def _disc(x: Plane, y: Plane) -> Mask:
    return x * x + y * y < 0.81**2


def _square(x: Plane, y: Plane) -> Mask:
    return (np.abs(x) < 0.72) & (np.abs(y) < 0.72)


def _cross(x: Plane, y: Plane) -> Mask:
    across, up = np.abs(x), np.abs(y)
    arms: Mask = (np.maximum(across, up) < 1.0) & (np.minimum(across, up) < 0.3)
    return arms


def _ring(x: Plane, y: Plane) -> Mask:
    square = x * x + y * y
    return (square < 1.0) & (square > 0.6**2)


def _crescent(x: Plane, y: Plane) -> Mask:
    away = x - 0.33
    right = x - 0.83
    within, bite = away * away + y * y, right * right + y * y
    mask: Mask = (within < 1.1**2) & (bite > 0.85**2)
    return mask


def _heart(x: Plane, y: Plane) -> Mask:
    # The sextic heart curve (x² + y² - 1)³ = x² y³, made a little smaller and lowered to its middle.
    across, up = x * 1.32, y * 1.32 + 0.18
    square = across * across
    bulge = square + up * up - 1.0
    mask: Mask = bulge * bulge * bulge < square * up * up * up
    return mask


def _polygon(corners: Sequence[tuple[float, float]]) -> Outline:
    """Return the even-odd test of a polygon: a point is inside if a ray to its right crosses an odd number of edges."""

    def contains(x: Plane, y: Plane) -> Mask:
        odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.bool_)
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if y0 == y1:
                continue
            between = (y < y0) != (y < y1)
            odd ^= between & (x < (y - y0) * ((x1 - x0) / (y1 - y0)) + x0)
        return odd

    return contains


_OUTLINES: dict[str, Outline] = {
    "disc": _disc,
    "square": _square,
    "triangle": _polygon(_TRIANGLE),
    "star": _polygon(_STAR),
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _polygon(_ARROW),
    "hourglass": _polygon(_HOURGLASS),
    "bolt": _polygon(_BOLT),
    "house": _polygon(_HOUSE),
}
