"""What a study found: values, arrays, tables and pictures, and writing them into a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_robust.core.files import atomic_path, write_table, write_tensors
from lit_robust.core.results import Example, Result

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """All that a study leaves.

    Attributes:
        results: values with their facets, such as ``layer`` and ``category``, for ``results.json``.
        arrays: by name, for ``arrays.safetensors``.
        tables: by name, rows whose keys are the columns, for ``NAME.csv``.
        pictures: by name, uint8 ``[H, W, 3]``, for ``pictures/NAME.png``.
        captions: of pictures, by name; those with one stand on the page.
    """

    results: Sequence[Result]
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path, kind: str) -> list[Example]:
        """Write all but the results, and return the pictures for the results file.

        Args:
            folder: of the study.
            kind: of study, which the pictures are examples of.
        """
        if self.arrays:
            write_tensors(folder / "arrays.safetensors", self.arrays)
        for name, rows in self.tables.items():
            write_table(folder / f"{name}.csv", rows)
        for name, pixels in self.pictures.items():
            with atomic_path(folder / "pictures" / f"{name}.png") as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG")
        named = [name for name in self.pictures if name in self.captions]
        return [
            Example(kind, kind, number, {"image": f"pictures/{name}.png"}, {"image": self.captions[name]})
            for number, name in enumerate(named)
        ]


def grid(images: Tensor, columns: int, zoom: int = 1) -> Picture:
    """Return images side by side as one picture.

    Args:
        images: float ``[N, 3, H, W]`` in [0, 1].
        columns: in a row.
        zoom: pixels a pixel.

    Returns:
        uint8 ``[H, W, 3]``, with white lines of 2 pixels between the images.
    """
    count, _, height, width = images.shape
    rows = -(-count // columns)
    high, wide = height * zoom + 2, width * zoom + 2
    picture = np.full((rows * high - 2, min(columns, count) * wide - 2, 3), 255, dtype=np.uint8)
    levels = images.detach().cpu().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    for number, pixels in enumerate(levels.repeat(zoom, 1).repeat(zoom, 2)):
        row, column = number // columns * high, number % columns * wide
        picture[row : row + height * zoom, column : column + width * zoom] = pixels
    return picture
