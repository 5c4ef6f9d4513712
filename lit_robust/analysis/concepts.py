"""Images with concepts marked in them: Broden's layout (Bau et al. 2017), and any folder of images with label maps."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from torch import Tensor

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import read_regular
from lit_robust.shards import decode_rgb

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Marked:
    """One image of a set, and where its labels are.

    Attributes:
        image: file.
        maps: files of label maps, whose pixels are labels; 0 is nothing.
        whole: labels of the whole image.
        size: height and width of the label maps; None for those of the image.
    """

    image: Path
    maps: Sequence[Path]
    whole: Sequence[int]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Concepts:
    """A set of images with marked concepts.

    Attributes:
        folder: that holds it.
        names: of labels, by their numbers; that of 0, which is nothing, is empty.
        categories: names of the categories.
        category: ``[L]`` place in ``categories`` of each label's own: the one it covers most pixels in; -1 for none.
        images: in order.
    """

    folder: Path
    names: Sequence[str]
    categories: Sequence[str]
    category: NDArray[np.int64]
    images: Sequence[Marked]

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, number: int) -> Tensor:
        """Return an image, uint8 ``[3, H, W]``."""
        file = self.images[number].image
        return torch.from_numpy(decode_rgb(_content(file), str(file)).copy()).permute(2, 0, 1)

    def labels(self, number: int) -> tuple[NDArray[np.int64], Sequence[int]]:
        """Return an image's label maps, int64 ``[P, h, w]``, and the labels of the whole image.

        Raises:
            DataError: a label has no name, or maps are of several sizes.
        """
        marked = self.images[number]
        maps = [_label_map(file) for file in marked.maps]
        size = marked.size or (maps[0].shape if maps else tuple(self.pixels(number).shape[1:]))
        for file, labels in zip(marked.maps, maps, strict=True):
            if labels.shape != size:
                raise DataError(f"{file} is of {list(labels.shape)} pixels, not {list(size)}: make all maps alike.")
            if int(labels.max(initial=0)) >= len(self.names):
                raise DataError(f"{file} has the label {int(labels.max())}, which has no name: add it to the names.")
        return np.stack(maps) if maps else np.zeros((0, *size), dtype=np.int64), marked.whole

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Give images in order, in batches of one size in pixels: their numbers, and floats ``[B, 3, H, W]``."""
        waiting: list[int] = []
        images: list[Tensor] = []
        for number in numbers:
            image = self.pixels(number)
            if images and (len(images) == size or image.shape != images[0].shape):
                yield waiting, torch.stack(images).float().div_(255)
                waiting, images = [], []
            waiting.append(number)
            images.append(image)
        if images:
            yield waiting, torch.stack(images).float().div_(255)


def open_concepts(folder: Path, limit: int | None = None) -> Concepts:
    """Open a set of marked images.

    Args:
        folder: with ``index.csv``, ``label.csv``, ``c_<category>.csv`` and ``images/``, as Broden's; or with
            ``names.csv`` (number, name, and category where there are several), ``images/`` and, for each image, the PNG
            of the same name in ``maps/``, whose pixels are those numbers (grey, or red + 256 green).
        limit: images taken, evenly spread over all; None for all.

    Raises:
        UserError: it is neither.
        DataError: a file is missing or damaged.
    """
    if (folder / "index.csv").is_file():
        found = _broden(folder)
    elif (folder / "names.csv").is_file():
        found = _plain(folder)
    else:
        raise UserError(
            f"{folder} has neither index.csv, as Broden has, nor names.csv: name a folder of marked images; "
            "`lit-robust data concepts` draws one."
        )
    if not found.images:
        raise UserError(f"{folder} holds no images: name a folder of marked images.")
    if limit is None or limit >= len(found):
        return found
    kept = [found.images[place * len(found) // limit] for place in range(limit)]
    return Concepts(found.folder, found.names, found.categories, found.category, kept)


def _broden(folder: Path) -> Concepts:
    names = {_number(row, "number", folder): row["name"] for row in _rows(folder / "label.csv", ("number", "name"))}
    rows = _rows(folder / "index.csv", ("image", "sh", "sw"))
    categories = [name for name in rows[0] if name not in ("image", "split", "ih", "iw", "sh", "sw")] if rows else []
    coverage = np.zeros((max(names, default=0) + 1, len(categories)))
    for place, category in enumerate(categories):
        file = folder / f"c_{category}.csv"
        for row in _rows(file, ("number", "coverage")) if file.is_file() else []:
            coverage[_number(row, "number", file), place] = float(row["coverage"] or 0) + 1e-12
    own = np.where(coverage.any(1), coverage.argmax(1), -1)
    images = []
    for row in rows:
        entries = [entry for category in categories for entry in row[category].split(";") if entry]
        images.append(
            Marked(
                _inside(folder, f"images/{row['image']}"),
                [_inside(folder, f"images/{entry}") for entry in entries if not entry.isdecimal()],
                [int(entry) for entry in entries if entry.isdecimal()],
                (_number(row, "sh", folder), _number(row, "sw", folder)),
            )
        )
    return Concepts(folder, _listed(names), categories, own, images)


def _plain(folder: Path) -> Concepts:
    rows = _rows(folder / "names.csv", ("number", "name"))
    names = {_number(row, "number", folder): row["name"] for row in rows}
    categories = sorted({row.get("category") or "concept" for row in rows})
    own = np.full(max(names, default=0) + 1, -1)
    for row in rows:
        own[int(row["number"])] = categories.index(row.get("category") or "concept")
    files = sorted(file for file in (folder / "images").rglob("*") if file.suffix.lower() in SUFFIXES)
    places = [file.relative_to(folder / "images").with_suffix(".png") for file in files]
    images = [
        Marked(file, [folder / "maps" / place], (), None)
        for file, place in zip(files, places, strict=True)
        if (folder / "maps" / place).is_file()
    ]
    return Concepts(folder, _listed(names), categories, own, images)


def _listed(names: Mapping[int, str]) -> list[str]:
    return [names.get(number, "") for number in range(max(names, default=0) + 1)]


def _rows(file: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(_content(file).decode("utf-8-sig").splitlines()))
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{file} is not a table of text ({error}): write it again.") from error
    if any(row.get(name) is None for row in rows for name in needed):
        raise DataError(f"{file} lacks one of the columns {', '.join(needed)}: write it again.")
    return [{name: value or "" for name, value in row.items() if name} for row in rows]


def _number(row: Mapping[str, str], name: str, file: Path) -> int:
    if not row[name].isdecimal():
        raise DataError(f"{file} has {row[name]!r} as {name}: write a whole number.")
    return int(row[name])


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder} names {name!r}, which lies outside of it: correct index.csv.")
    return path


def _content(file: Path) -> bytes:
    try:
        return read_regular(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): copy the set again.") from error


def _label_map(file: Path) -> NDArray[np.int64]:
    try:
        with Picture.open(file) as picture:
            levels = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file} is not a readable label map ({error}): copy the set again.") from error
    if levels.ndim == 2:
        return levels.astype(np.int64)
    # Red + 256 green overflows in the file's own type.
    numbers: NDArray[np.uint16] = levels[:, :, 0] | levels[:, :, 1].astype(np.uint16) << 8
    return numbers.astype(np.int64)
