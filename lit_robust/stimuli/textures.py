"""Twelve fine two-tone patterns that fill the plane: which points are bright.

Like the outlines they need only arithmetic whose every bit IEEE 754 settles. Each pattern is bright on about half of
the plane, so that its mean brightness does not name it, and looks the same in a mirror, so that flipping keeps it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Texture = Callable[[Plane, Plane], Mask]

TRAINED = ("lines", "bars", "checks", "dots", "grid", "net", "zigzag", "grain")
NOVEL = ("rings", "bricks", "sawteeth", "dashes")

_HALF_DIAGONAL = 0.70710678


def bright(name: str, u: Plane, v: Plane) -> Mask:
    """Return which points of a pattern are bright.

    Args:
        name: one of ``TRAINED`` or ``NOVEL``.
        u: ``[...]`` abscissae in periods of the pattern.
        v: ``[...]`` ordinates in periods, of the shape of ``u``.

    Returns:
        ``[...]`` bool, true where bright.
    """
    return _TEXTURES[name](u, v)


def _fraction(x: Plane) -> Plane:
    return x - np.floor(x)


def _lines(u: Plane, v: Plane) -> Mask:
    return _fraction(v) < 0.5


def _bars(u: Plane, v: Plane) -> Mask:
    return _fraction(u) < 0.5


def _checks(u: Plane, v: Plane) -> Mask:
    return (_fraction(u) < 0.5) ^ (_fraction(v) < 0.5)


def _dots(u: Plane, v: Plane) -> Mask:
    # Two square lattices, the second in the gaps of the first.
    a, b = _fraction(u * _HALF_DIAGONAL) - 0.5, _fraction(v * _HALF_DIAGONAL) - 0.5
    c, d = 0.5 - np.abs(a), 0.5 - np.abs(b)
    square: Plane = np.minimum(a * a + b * b, c * c + d * d)
    return square < 0.28**2


def _grid(u: Plane, v: Plane) -> Mask:
    return (_fraction(u) < 0.3) | (_fraction(v) < 0.3)


def _net(u: Plane, v: Plane) -> Mask:
    return _grid((u + v) * _HALF_DIAGONAL, (u - v) * _HALF_DIAGONAL)


def _zigzag(u: Plane, v: Plane) -> Mask:
    return _fraction(v + np.abs(_fraction(u * 0.6) - 0.5) * 1.6) < 0.5


def _grain(u: Plane, v: Plane) -> Mask:
    # An integer hash of the cell's place: unsigned multiplication wraps, and is the same everywhere.
    column, row = np.floor(u * 2.4).astype(np.int64), np.floor(v * 2.4).astype(np.int64)
    mixed = column.astype(np.uint32) * np.uint32(0x9E3779B1) ^ row.astype(np.uint32) * np.uint32(0x85EBCA77)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    light: Mask = (mixed >> np.uint32(17)) & np.uint32(1) == 1
    return light


def _rings(u: Plane, v: Plane) -> Mask:
    a, b = (_fraction(u / 3.0) - 0.5) * 3.0, (_fraction(v / 3.0) - 0.5) * 3.0
    radius: Plane = np.sqrt(a * a + b * b)
    return _fraction(radius) < 0.5


def _bricks(u: Plane, v: Plane) -> Mask:
    shift: Plane = np.floor(v) * np.float32(0.75)
    return (_fraction(v) > 0.35) & (_fraction((u + shift) / 1.5) > 0.23)


def _sawteeth(u: Plane, v: Plane) -> Mask:
    rise: Plane = np.abs(_fraction(u * 0.8) - 0.5) * 2
    return rise < _fraction(v * 0.8)


def _dashes(u: Plane, v: Plane) -> Mask:
    shift: Plane = np.floor(u) * np.float32(0.5)
    return (_fraction(u) < 0.6) & (_fraction(v * 0.5 + shift) < 0.8)


_TEXTURES: dict[str, Texture] = {
    "lines": _lines,
    "bars": _bars,
    "checks": _checks,
    "dots": _dots,
    "grid": _grid,
    "net": _net,
    "zigzag": _zigzag,
    "grain": _grain,
    "rings": _rings,
    "bricks": _bricks,
    "sawteeth": _sawteeth,
    "dashes": _dashes,
}
