"""Drawn figures with marked concepts, in Broden's layout: outlines, textures and colours, each with every other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lit_robust.core.errors import UserError, check_count
from lit_robust.core.files import atomic_path, write_table
from lit_robust.core.seeds import stream_seed
from lit_robust.data.settings import LARGEST_SIDE
from lit_robust.stimuli import outlines, textures
from lit_robust.stimuli.figures import PLAIN, TEXTURES, Layout, draw_figure, figure_mask

CLUTTERED = Layout(clutter=6)  # Strips of other colours cross the ground, which no label names.
FIELD = Layout(radius=(4.0, 4.0), offset=0.0)  # The texture alone, over the whole image.
COLOURS = tuple(f"{shade} {hue}" for hue in ("red", "green", "blue") for shade in ("dark", "light"))
CATEGORIES: Mapping[str, Sequence[str]] = {
    "object": outlines.TRAINED,
    "texture": textures.TRAINED,
    "colour": COLOURS,
}
NUMBERS = {
    name: number
    for number, name in enumerate((f"{kind}/{one}" for kind, names in CATEGORIES.items() for one in names), 1)
}
MOST_FIGURES = 1_000_000


def write_concepts(output: Path, seed: int, count: int = 512, size: int = 48) -> None:
    """Draw figures whose outline, texture and colours are drawn independently, and mark each pixel's concepts.

    Of every nine images one is a field of texture, which is a label of the whole image. ``twins/`` holds each image
    once more with another texture and all else as it was.

    Args:
        output: folder to write.
        seed: of the figures.
        count: of images.
        size: side in pixels.

    Raises:
        UserError: the folder holds files already, or a number is out of range.
    """
    check_count("count", count, 9, MOST_FIGURES)
    check_count("size", size, 16, LARGEST_SIDE)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} holds files already: choose another folder, or delete that one.")
    covered = np.zeros((len(NUMBERS) + 1, 2))
    rows = []
    for number in tqdm(range(count), desc="drawing", unit="figure"):
        rows.append(_write_one(output, seed, number, size, covered))
    write_table(output / "index.csv", rows)
    write_table(output / "category.csv", [{"name": kind, "first": 0, "last": 0} for kind in CATEGORIES])
    named = []
    for name, number in NUMBERS.items():
        kind, _, word = name.partition("/")
        frequency, coverage = covered[number]
        labels = {"name": word, "category": kind, "frequency": int(frequency), "coverage": coverage, "syns": ""}
        named.append({"number": number, **labels})
    write_table(output / "label.csv", named)
    for kind in CATEGORIES:
        own = [row for row in named if row["category"] == kind]
        write_table(output / f"c_{kind}.csv", [{"code": code, **row} for code, row in enumerate(own, 1)])


def _write_one(output: Path, seed: int, number: int, size: int, covered: NDArray[np.float64]) -> dict[str, Any]:
    """Draw and mark one image and its twin, and return its row of the index."""
    kinds, name = len(outlines.TRAINED), f"{number:06d}"
    outline, texture = number % kinds, (number % kinds + number // kinds) % kinds
    is_field = number % 9 == 8
    layout = FIELD if is_field else (CLUTTERED if number % 2 else PLAIN)
    row: dict[str, Any] = {"image": f"{name}.png", "split": "train", "ih": size, "iw": size, "sh": size, "sw": size}
    for folder, shift in (("images", 0), ("twins", 1 + number % (len(TEXTURES) - 1))):
        stream = np.random.SeedSequence(stream_seed(seed, "figure concepts", number))
        other = (texture + shift) % len(TEXTURES)
        figure = draw_figure(outline=outline, texture=other, size=size, seed=stream, layout=layout)
        _write_png(output / folder / f"{name}.png", figure)
        if folder == "images":
            drawn, inside = figure, figure_mask(outline=outline, size=size, seed=stream, layout=layout)
    colours = np.zeros((size, size), dtype=np.int64)
    for region in (inside, ~inside):
        if region.any():
            mean = drawn[region].mean(0)
            shade = "light" if mean.mean() > 0.475 * 255 else "dark"
            colours[region] = NUMBERS[f"colour/{shade} {('red', 'green', 'blue')[int(mean.argmax())]}"]
    maps = {"colour": colours}
    named = NUMBERS[f"texture/{textures.TRAINED[texture]}"]
    if is_field:
        row["object"], row["texture"] = "", str(named)
        covered[named] += 1, 1
    else:
        maps["object"] = inside * NUMBERS[f"object/{outlines.TRAINED[outline]}"]
        maps["texture"] = inside * named
    for kind, labels in maps.items():
        for label in np.unique(labels[labels > 0]):
            covered[label] += 1, (labels == label).mean()
        row[kind] = f"{name}_{kind}.png"
        levels = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], 2).astype(np.uint8)
        _write_png(output / "images" / row[kind], levels)
    return {key: row[key] for key in ("image", "split", "ih", "iw", "sh", "sw", *CATEGORIES)}


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
