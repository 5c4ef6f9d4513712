"""Pictures of ice that we draw: feathers of crystals on a frosted pane.

They take the place of ImageNet-C's photographs of frost where those are not at hand, and are made to have the same
colours and contrasts, so that they disturb an image about as much.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE = 512
SCALE = 2
FEATHERS = 420
BRANCHING = math.radians(60)
TINTS = ((78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135))
"""The mean colour of each photograph."""
CONTRAST = (20.0, 22.0, 22.0, 29.0, 43.0)
"""The standard deviation of each, over its pixels and the mean of the channels."""

Grey = NDArray[np.float32]


def _feather(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    length: float,
    light: float,
) -> None:
    """Draw one needle, and along it needles to both sides, shorter towards its tip."""
    bend = rng.uniform(-0.3, 0.3)
    spacing = rng.uniform(3, 6) * SCALE
    steps = max(2, int(length / spacing))
    x, y = start
    for step in range(steps):
        rest = 1 - step / steps
        to_x, to_y = x + math.cos(angle) * length / steps, y + math.sin(angle) * length / steps
        draw.line((x, y, to_x, to_y), fill=int(light * (0.6 + 0.4 * rest)), width=1 + round(SCALE * rest))
        side = length * 0.5 * rest * rng.uniform(0.5, 1.0)
        for turn in (-BRANCHING, BRANCHING):
            way = angle + turn + rng.normal(0, 0.08)
            if side > 14 * SCALE:
                _feather(draw, rng, (to_x, to_y), way, side, light * rng.uniform(0.7, 1.0))
            elif side > 2 * SCALE:
                tip = to_x + side * math.cos(way), to_y + side * math.sin(way)
                draw.line((to_x, to_y, *tip), fill=int(light * rng.uniform(0.3, 0.9)), width=SCALE)
        angle += bend / steps
        x, y = to_x, to_y


def _clouds(rng: np.random.Generator) -> Grey:
    """Return ``[SIDE, SIDE]``: smooth noise of five octaves, mean 0, deviation 1."""
    total = np.zeros((SIDE, SIDE), dtype=np.float32)
    for octave in range(2, 7):
        coarse = rng.standard_normal((2**octave, 2**octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 2**octave
    return np.asarray((total - total.mean()) / total.std(), dtype=np.float32)


def draw_ice(number: int) -> NDArray[np.uint8]:
    """Draw one picture, the same for the same number.

    Args:
        number: 0 to 4.

    Returns:
        ``[512, 512, 3]`` uint8.
    """
    rng = np.random.Generator(np.random.PCG64(number))
    side = SIDE * SCALE
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    for _ in range(FEATHERS):
        start = float(rng.uniform(0, side)), float(rng.uniform(0, side))
        length = float(rng.uniform(0.03, 0.16)) * side
        _feather(draw, rng, start, rng.uniform(0, 2 * math.pi), length, rng.uniform(60, 255))
    crystals = canvas.resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.6))
    sharp = np.asarray(crystals, dtype=np.float32) / 255
    soft = np.asarray(crystals.filter(ImageFilter.GaussianBlur(4)), dtype=np.float32) / 255
    # Light from the upper left makes a relief of the crystals' thickness.
    relief = sharp - np.roll(sharp, (2, 2), axis=(0, 1))
    picture = 0.8 * relief + 0.6 * sharp + 0.5 * soft + 0.12 * _clouds(rng)
    picture = (picture - picture.mean()) / picture.std()
    colour = np.array(TINTS[number], dtype=np.float32) + CONTRAST[number] * picture[..., None]
    return np.asarray(colour.round().clip(0, 255), dtype=np.uint8)
