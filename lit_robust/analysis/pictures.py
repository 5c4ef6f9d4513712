"""Grids of images with a word for each row and each column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SMALLEST = 96  # pixels of a cell's side; smaller images are enlarged, pixel by pixel
GAP = 2


def labelled_grid(rows: Mapping[str, Tensor], columns: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Return images as one picture, with the rows' names on the left and the columns' above.

    Args:
        rows: name to float images ``[K, 3, H, W]`` in [0, 1], of one size; as many in each row.
        columns: names of the K columns; empty for none.

    Returns:
        uint8 ``[height, width, 3]``, on white.
    """
    count, _, height, width = next(iter(rows.values())).shape
    zoom = max(1, -(-SMALLEST // min(height, width)))
    font = ImageFont.load_default(12)
    left = max((int(font.getlength(name)) for name in rows), default=0) + 8
    above = 18 if columns else 0
    high, wide = height * zoom + GAP, width * zoom + GAP
    picture = Image.new("RGB", (left + count * wide, above + len(rows) * high), "white")
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(columns):
        draw.text((left + column * wide, 2), _fitting(name, font, wide - GAP), "black", font)
    for row, (name, images) in enumerate(rows.items()):
        draw.text((4, above + row * high + high // 2 - 8), name, "black", font)
        for column, levels in enumerate(as_levels(images)):
            cell = Image.fromarray(levels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            picture.paste(cell, (left + column * wide, above + row * high))
    return np.asarray(picture)


@dataclass(frozen=True)
class Points:
    """Points of one panel.

    Attributes:
        across: where they lie from left to right, ``[N]``.
        up: where they lie from below, ``[N]``.
        names: what the two axes show.
    """

    across: Tensor
    up: Tensor
    names: tuple[str, str]


def scatter(panels: Mapping[str, Points], diagonal: bool = False) -> NDArray[np.uint8]:
    """Return a panel of points under each name, at most five in a row.

    Args:
        panels: name to points.
        diagonal: whether a line shows where both are equal.

    Returns:
        uint8 ``[height, width, 3]``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 5)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        if diagonal:
            most = float(torch.cat([points.across, points.up]).max())
            axes.plot([0, most], [0, most], color="0.6", linewidth=0.8)
        axes.scatter(points.across.numpy(), points.up.numpy(), s=5, alpha=0.5)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel(points.names[0], fontsize=7)
        axes.set_ylabel(points.names[1], fontsize=7)
        axes.tick_params(labelsize=6)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def as_levels(images: Tensor) -> NDArray[np.uint8]:
    """Return uint8 ``[K, H, W, 3]`` of float images ``[K, 3, H, W]`` in [0, 1]."""
    levels = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(levels.cpu().numpy())


def heat(maps: Tensor) -> Tensor:
    """Return maps ``[K, H, W]``, each from its least to its greatest value, as float images ``[K, 3, H, W]`` in [0, 1].

    Colours go from blue by green to red (matplotlib's ``turbo``); a map of one value is blue.
    """
    from matplotlib import colormaps

    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / torch.where(high > low, high - low, 1.0)
    colours = colormaps["turbo"](scaled.cpu().numpy())[..., :3]
    return torch.from_numpy(colours.astype(np.float32)).permute(0, 3, 1, 2)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
