"""Frost: a picture of ice laid over the image."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.stimuli.corruptions.draws import Draws, to_bytes
from lit_robust.stimuli.corruptions.ice import draw_ice

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

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: the images' random numbers.
        pictures: of frost.
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
