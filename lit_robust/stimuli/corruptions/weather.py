"""Weather: fog, a fractal height map; frost, a picture of ice; and snow.

The pictures of ice are drawn here, feathers of crystals on a frosted pane. They take the place of ImageNet-C's
photographs of frost where those are not at hand, and are made to have the same colours and contrasts, so that they
disturb an image about as much.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.stimuli.corruptions.blur import fill_frame, motion_filter, zoomed_share
from lit_robust.stimuli.corruptions.shared import Draws, to_bytes

FOG_AMOUNT_AND_DECAY = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))


def plasma(size: int, decay: float, draws: Draws) -> Tensor:
    """Draw fractal height maps by diamonds and squares; they go on over their edges.

    Every finer point is the mean of its four neighbours and a random number of up to ``wobble²`` to either side, where
    ``wobble`` starts at 100 and falls by ``decay`` with each halving of the distance.

    Args:
        size: of the map, a power of two.
        decay: above 1; the larger, the smoother.
        draws: the images' random numbers.

    Returns:
        ``[B, size, size]`` float32, least height 0 and largest 1.
    """
    noise = draws.uniform((size, size), -1.0, 1.0)
    heights = torch.zeros_like(noise)
    step, wobble = size, 100.0
    while step >= 2:
        half = step // 2
        # What is added at this level: each point of the map is written once, so one random map serves all levels.
        corners = heights[:, ::step, ::step]
        right_sum = corners + corners.roll(-1, 1)
        square_sum = right_sum + right_sum.roll(-1, 2)
        middle = heights[:, half::step, half::step]
        middle.copy_(square_sum.mul_(0.25).add_(noise[:, half::step, half::step], alpha=wobble**2))
        across = (middle + middle.roll(1, 1)).add_(corners + corners.roll(-1, 2))
        heights[:, ::step, half::step] = across.mul_(0.25).add_(noise[:, ::step, half::step], alpha=wobble**2)
        down = (middle + middle.roll(1, 2)).add_(corners + corners.roll(-1, 1))
        heights[:, half::step, ::step] = down.mul_(0.25).add_(noise[:, half::step, ::step], alpha=wobble**2)
        step, wobble = half, wobble / decay
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    return heights.div_(heights.amax(dim=(1, 2), keepdim=True))


def fog(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Add fog, then scale down so that the brightest value of the image under the thickest fog stays as it was.

    The published map has 256 points for 224 pixels; for other sizes it has the next power of two.
    """
    amount, decay = FOG_AMOUNT_AND_DECAY[severity - 1]
    height, width = images.shape[-2:]
    size = 1 << (max(height, width) - 1).bit_length()
    heights = plasma(size, decay, draws)[:, None, :height, :width]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True).float()
    scale = brightest / (brightest + 255 * amount)
    return to_bytes((images + heights * (255 * amount)).mul_(scale))


ICE_SIDE = 512
ICE_SCALE = 2
ICE_FEATHERS = 420
ICE_BRANCHING = math.radians(60)
ICE_TINTS = ((78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135))
"""The mean colour of each photograph."""
ICE_CONTRAST = (20.0, 22.0, 22.0, 29.0, 43.0)
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
    spacing = rng.uniform(3, 6) * ICE_SCALE
    steps = max(2, int(length / spacing))
    x, y = start
    for step in range(steps):
        rest = 1 - step / steps
        to_x, to_y = x + math.cos(angle) * length / steps, y + math.sin(angle) * length / steps
        draw.line((x, y, to_x, to_y), fill=int(light * (0.6 + 0.4 * rest)), width=1 + round(ICE_SCALE * rest))
        side = length * 0.5 * rest * rng.uniform(0.5, 1.0)
        for turn in (-ICE_BRANCHING, ICE_BRANCHING):
            way = angle + turn + rng.normal(0, 0.08)
            if side > 14 * ICE_SCALE:
                _feather(draw, rng, (to_x, to_y), way, side, light * rng.uniform(0.7, 1.0))
            elif side > 2 * ICE_SCALE:
                tip = to_x + side * math.cos(way), to_y + side * math.sin(way)
                draw.line((to_x, to_y, *tip), fill=int(light * rng.uniform(0.3, 0.9)), width=ICE_SCALE)
        angle += bend / steps
        x, y = to_x, to_y


def _clouds(rng: np.random.Generator) -> Grey:
    """Return ``[ICE_SIDE, ICE_SIDE]``: smooth noise of five octaves, mean 0, deviation 1."""
    total = np.zeros((ICE_SIDE, ICE_SIDE), dtype=np.float32)
    for octave in range(2, 7):
        coarse = rng.standard_normal((2**octave, 2**octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize((ICE_SIDE, ICE_SIDE), Image.Resampling.BICUBIC)) / 2**octave
    return np.asarray((total - total.mean()) / total.std(), dtype=np.float32)


def draw_ice(number: int) -> NDArray[np.uint8]:
    """Draw one picture, the same for the same number.

    Args:
        number: 0 to 4.

    Returns:
        ``[512, 512, 3]`` uint8.
    """
    rng = np.random.Generator(np.random.PCG64(number))
    side = ICE_SIDE * ICE_SCALE
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    for _ in range(ICE_FEATHERS):
        start = float(rng.uniform(0, side)), float(rng.uniform(0, side))
        length = float(rng.uniform(0.03, 0.16)) * side
        _feather(draw, rng, start, rng.uniform(0, 2 * math.pi), length, rng.uniform(60, 255))
    crystals = canvas.resize((ICE_SIDE, ICE_SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.6))
    sharp = np.asarray(crystals, dtype=np.float32) / 255
    soft = np.asarray(crystals.filter(ImageFilter.GaussianBlur(4)), dtype=np.float32) / 255
    # Light from the upper left makes a relief of the crystals' thickness.
    relief = sharp - np.roll(sharp, (2, 2), axis=(0, 1))
    picture = 0.8 * relief + 0.6 * sharp + 0.5 * soft + 0.12 * _clouds(rng)
    picture = (picture - picture.mean()) / picture.std()
    colour = np.array(ICE_TINTS[number], dtype=np.float32) + ICE_CONTRAST[number] * picture[..., None]
    return np.asarray(colour.round().clip(0, 255), dtype=np.uint8)


CLEAN_AND_FROST_SHARE = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
PICTURES = 5
WINDOW = 224
"""Pixels of a picture that the longer side of an image shows."""
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class FrostPictures:
    """Five pictures of frost, from a folder or drawn.

    ImageNet-C's own are photographs, ``frost1.png`` to ``frost5.jpg`` of its repository (a sixth is never used). They
    are not ours to give away: name a folder that holds them, or use those we draw, which are the same everywhere but
    are not the photographs.

    Attributes:
        folder: that has ``frost1`` to ``frost5``, each a PNG or JPEG; none for those we draw.

    Raises:
        UserError: a picture is missing, cannot be read, or has a side of less than 225 pixels.
    """

    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            _read_all(self.folder)

    @property
    def pictures(self) -> tuple[Tensor, ...]:
        """Five of ``[3, h, w]`` uint8, h and w above 224; read or drawn once a process, and not part of a pickle."""
        return _draw_all() if self.folder is None else _read_all(self.folder)


@cache
def _draw_all() -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(draw_ice(number)).permute(2, 0, 1).contiguous() for number in range(PICTURES))


@cache
def _read_all(folder: Path) -> tuple[Tensor, ...]:
    return tuple(_read(folder, f"frost{number}") for number in range(1, PICTURES + 1))


def _read(folder: Path, name: str) -> Tensor:
    path = next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)
    if path is None:
        raise UserError(f"No {name}.png or .jpg in {folder}: put ImageNet-C's frost1 to frost5 there.")
    try:
        with Image.open(path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"Cannot read {path} ({error}): copy it once more.") from error
    if min(pixels.shape[1:]) <= WINDOW:
        raise UserError(f"{path} is {pixels.shape[2]} x {pixels.shape[1]} pixels: use one of at least 225 x 225.")
    return pixels


def frost(images: Tensor, severity: int, draws: Draws, pictures: FrostPictures) -> Tensor:
    """Add a random cut-out of one of five pictures.

    An image of 224 pixels gets 224 pixels of the picture, as published. The longer side of any other gets as many,
    scaled to its size.
    """
    height, width = images.shape[-2:]
    longest = max(height, width)
    rows, columns = max(1, round(WINDOW * height / longest)), max(1, round(WINDOW * width / longest))
    cuts = []
    for which, top, left in draws.uniform((3,), 0.0, 1.0).tolist():
        picture = pictures.pictures[min(int(which * PICTURES), PICTURES - 1)]
        y, x = int(top * (picture.shape[1] - rows)), int(left * (picture.shape[2] - columns))
        cut = picture[:, y : y + rows, x : x + columns].to(images.device)
        if cut.shape[1:] != (height, width):
            size = (height, width)
            cut = F.interpolate(cut[None].float(), size=size, mode="bilinear", antialias=True).round_()[0]
        cuts.append(cut)
    clean_share, frost_share = CLEAN_AND_FROST_SHARE[severity - 1]
    return to_bytes((images * clean_share).add_(torch.stack(cuts), alpha=frost_share))


SNOW_MEAN = (0.1, 0.2, 0.55, 0.55, 0.55)
SNOW_DEVIATION = 0.3
SNOW_ZOOM = (3, 2, 4, 4.5, 2.5)
SNOW_THRESHOLD = (0.5, 0.5, 0.9, 0.85, 0.85)
SNOW_BLUR_RADIUS_AND_DEVIATION = ((10, 4), (12, 4), (12, 8), (12, 8), (12, 12))
SNOW_CLEAN_SHARE = (0.8, 0.7, 0.7, 0.65, 0.55)
SNOW_ANGLES = (-135.0, -45.0)
LUMA = (0.299, 0.587, 0.114)


def flakes(height: int, width: int, severity: int, draws: Draws) -> Tensor:
    """Draw falling snow, an even black where there is none.

    Only the middle of the published code's noise map is ever seen, so no more than that is drawn.

    Returns:
        ``[B, 1, H, W]`` float32, whole numbers of 0 to 255.
    """
    zoom = SNOW_ZOOM[severity - 1]
    middle = draws.normal(
        (1, zoomed_share(height, zoom), zoomed_share(width, zoom)), SNOW_MEAN[severity - 1], SNOW_DEVIATION
    )
    layer = fill_frame(middle, zoom, height, width)
    layer = (layer * (layer >= SNOW_THRESHOLD[severity - 1])).clamp_(0, 1).mul_(255).floor_()
    radius, deviation = SNOW_BLUR_RADIUS_AND_DEVIATION[severity - 1]
    return motion_filter(layer, radius, deviation, draws.uniform((), *SNOW_ANGLES))


def snow(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Bleach the image, and add one layer of snow as it is and once more turned by 180 degrees."""
    layer = flakes(images.shape[-2], images.shape[-1], severity, draws)
    clean = images.float()
    red, green, blue = clean[:, 0:1], clean[:, 1:2], clean[:, 2:3]
    grey = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    bleached = torch.maximum(clean, grey.mul_(1.5).add_(0.5 * 255))
    share = SNOW_CLEAN_SHARE[severity - 1]
    return to_bytes(clean.mul_(share).add_(bleached, alpha=1 - share).add_(layer + layer.rot90(2, (-2, -1))))
