"""Decoded images to one size, and training's augmentations: on uint8, one image at a time, in a worker process."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lit_robust.core.errors import check_choice, check_count
from lit_robust.data.settings import LARGEST_SIDE, check_given

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


Crop = Literal["none", "random_resized", "padded"]
Image = NDArray[np.uint8]


class CropError(ValueError):
    """An image does not have the size that a crop needs; the words go on after the image's name."""


@dataclass(frozen=True)
class EvaluationCrop:
    """Cut off a border, resize the shorter side, then cut out the centre; any may be left out.

    Attributes:
        resize: length of the shorter side in pixels; null keeps the image as it is.
        crop: side of the central square in pixels; null keeps the whole image.
        border: pixels that are cut off each side first, as of ObjectNet's images.
    """

    resize: int | None = 256
    crop: int | None = 224
    border: int = 0

    def __post_init__(self) -> None:
        check_count("border", self.border, 0, LARGEST_SIDE)
        for name, side in (("resize", self.resize), ("crop", self.crop)):
            if side is not None:
                check_count(name, side, 1, LARGEST_SIDE)

    def __call__(self, image: Image) -> Tensor:
        """Return uint8 ``[3, H, W]`` of an RGB image ``[H, W, 3]``.

        Raises:
            CropError: nothing is left within the border.
        """
        pixels = as_tensor(image)
        if self.border:
            height, width = pixels.shape[1:]
            if min(height, width) <= 2 * self.border:
                raise CropError(f"is {width} x {height} px, all of it border: set evaluation.border below that.")
            pixels = pixels[:, self.border : height - self.border, self.border : width - self.border]
        if self.resize is not None:
            height, width = pixels.shape[1:]
            short = min(height, width)
            # torchvision's Resize rounds the longer side down.
            size = (int(self.resize * height / short), int(self.resize * width / short))
            pixels = resize(pixels, size)
        return pixels if self.crop is None else centre_crop(pixels, self.crop)

    def protocol(self) -> dict[str, object]:
        """Return plain values for the results file."""
        border = {"border": self.border} if self.border else {}
        return {**border, "resize": self.resize, "crop": self.crop, "interpolation": "bilinear with antialias"}


@dataclass(frozen=True)
class TrainingCrop:
    """Draw a crop, a flip and, where asked for, a hole from a generator.

    Attributes:
        crop: ``random_resized`` (8 to 100 % of the area, aspect 3/4 to 4/3), ``padded`` (a random place after padding
            by an eighth of the size), or ``none``, for images that have the size already.
        size: side of the result in pixels.
        flip: mirror every second image, left to right.
        cutout: side in pixels of a square hole of ImageNet's mean colour, anywhere in the image (DeVries and Taylor
            2017); 0 for none.
    """

    crop: Crop = "random_resized"
    size: int = 224
    flip: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        check_choice("training.crop", self.crop, get_args(Crop))
        check_given("training.flip", self.flip)
        check_count("training.size", self.size, 1, LARGEST_SIDE)
        check_count("training.cutout", self.cutout, 0, LARGEST_SIDE)

    def __call__(self, image: Image, random: np.random.Generator) -> Tensor:
        """Return uint8 ``[3, size, size]`` of an RGB image ``[H, W, 3]``.

        Raises:
            CropError: the image is too small to be cut out of, or, without a crop, of another size.
        """
        pixels = as_tensor(image)
        height, width = pixels.shape[1:]
        if self.crop == "random_resized":
            top, left, height, width = random_box(height, width, random)
            pixels = resize(pixels[:, top : top + height, left : left + width], (self.size, self.size))
        elif self.crop == "padded":
            pad = self.size // 8
            rooms = [side + 2 * pad - self.size for side in (height, width)]
            if min(rooms) < 0:
                raise CropError(
                    f"is {width} x {height} px, too small for a crop of {self.size} px after {pad} px of padding: set "
                    "training.size to the images' size, or training.crop to random_resized."
                )
            top, left = (int(random.integers(0, room + 1)) for room in rooms)
            pixels = F.pad(pixels, (pad, pad, pad, pad))[:, top : top + self.size, left : left + self.size]
        elif (height, width) != (self.size, self.size):
            raise CropError(
                f"is {width} x {height} px, but without a crop all training images must be {self.size} x {self.size} "
                "px: set training.size to the images' size, or training.crop to random_resized."
            )
        if self.flip and random.random() < 0.5:
            pixels = pixels.flip(2)
        return cutout(pixels, self.cutout, random) if self.cutout else pixels


def as_tensor(image: Image) -> Tensor:
    """Return ``[3, H, W]`` that shares memory with the image ``[H, W, 3]``."""
    return torch.from_numpy(image).permute(2, 0, 1)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 ``[3, H, W]`` to ``size`` (height, width): bilinear, with antialias when it shrinks."""
    if pixels.shape[1:] == size:
        return pixels
    # The batch dimension is added in front of rows, so that torch sees pixels whose channels lie side by side, and
    # leaves them so: `pixels[None]` has a stride by which it would not.
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=size, mode="bilinear", antialias=True)[0]


def centre_crop(pixels: Tensor, side: int) -> Tensor:
    """Cut the central square out of ``[3, H, W]``, padding with black where the image is smaller."""
    height, width = pixels.shape[1:]
    if height < side or width < side:
        down, across = max(side - height, 0), max(side - width, 0)
        pixels = F.pad(pixels, (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2))
        height, width = pixels.shape[1:]
    # Rounds half to even, as torchvision's CenterCrop does.
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[:, top : top + side, left : left + side]


def random_box(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box of a random resized crop (Szegedy et al. 2015, as torchvision draws it).

    Returns:
        Top, left, height and width in pixels; after ten misses the largest central box of an allowed aspect.
    """
    area = height * width
    for _ in range(10):
        target = area * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(random.integers(0, height - box_height + 1))
            left = int(random.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    box_width = min(width, round(height * 4 / 3))
    box_height = min(height, round(width * 4 / 3))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
