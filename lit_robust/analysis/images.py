"""Images of a split of shards, by number: as a study takes them, in any order and more than once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lit_robust.core.errors import UserError
from lit_robust.data import CueConflictDataModule
from lit_robust.data.loading.order import random_stream
from lit_robust.data.loading.splits import Reading, TableSplit, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.shards import decode_rgb

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded and cropped images of a split.

    Attributes:
        split: opened shards.
        crop: resize and crop.
        numbers: which samples, by their numbers in the split.
        name: of the set, for results.
    """

    split: TableSplit
    crop: EvaluationCrop
    numbers: Numbers
    name: str

    @classmethod
    def open(cls, folder: Path, split: str, crop: EvaluationCrop, limit: int | None = None) -> "Images":
        """Open a split of shards.

        Args:
            folder: of the set, such as ``data/imagenet``.
            split: its split.
            crop: resize and crop.
            limit: images drawn at random, always the same ones; None for all.

        Raises:
            UserError: there are no such shards.
        """
        table = open_table(folder, split, Reading())
        numbers = np.arange(len(table))
        if limit is not None and limit < len(table):
            numbers = np.sort(random_stream(0, "limit", 0).choice(len(table), limit, replace=False))
        return cls(table, crop, numbers, folder.name)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Tensor:
        """Return one image, uint8 ``[3, H, W]``, by its place in ``numbers``."""
        reader, row = self.split.table.find(int(self.numbers[place]))
        return self.crop(decode_rgb(reader.image_bytes(row), reader.name(row)))

    @property
    def labels(self) -> Numbers:
        """Class of each image, ``[N]``."""
        return self.split.table.label[self.numbers]

    @property
    def class_names(self) -> list[str]:
        """What to call each image's class, ``[N]``."""
        names = self.split.class_names
        return [names[label] if label < len(names) else f"class {label}" for label in self.labels.tolist()]

    @property
    def protocol(self) -> dict[str, Any]:
        """Which images these are, as plain values."""
        part: Mapping[str, Any] = {}
        if len(self) < len(self.split):
            part = {"restricted": f"{len(self)} of {len(self.split)} images"}
        return {**self.split.protocol, **self.crop.protocol(), **part}

    def take(self, places: Sequence[int] | Numbers) -> Tensor:
        """Return images, float ``[N, 3, H, W]`` in [0, 1], by their places."""
        return torch.stack([self[int(place)] for place in places]).float().div_(255)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Return all images, float ``[N, 3, H, W]`` in [0, 1], and their classes, int64 ``[N]``."""
        return self.take(np.arange(len(self))), torch.from_numpy(self.labels).long()

    def batches(self, size: int, what: str, workers: int = 0) -> Iterator[tuple[Numbers, Tensor]]:
        """Give all images in batches, with a progress bar.

        Args:
            size: images a batch.
            what: is done, for the bar.
            workers: processes that read and decode.

        Yields:
            Places ``[B]`` and images, float ``[B, 3, H, W]`` in [0, 1].

        Raises:
            UserError: they are not of one size.
        """
        loader: DataLoader[Tensor] = DataLoader(self, size, num_workers=workers, collate_fn=_stacked)  # type: ignore[arg-type]
        with tqdm(total=len(self), desc=what, unit="image", leave=False) as progress:
            first = 0
            for images in loader:
                yield np.arange(first, first + len(images)), images.float().div_(255)
                first += len(images)
                progress.update(len(images))


def _stacked(images: list[Tensor]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        raise UserError("The images are not of one size: set crop to the side of a square in pixels.")
    return torch.stack(images)


@dataclass(frozen=True)
class Conflict:
    """Cue-conflict images that a network is asked about.

    Attributes:
        images: by their place: float ``[1, 3, H, W]`` in [0, 1].
        shapes: ``[N]`` category of the shape.
        textures: ``[N]`` category of the texture; an image whose two are the same cannot count.
        categories: name to class numbers.
        protocol: which images these are, as plain values.
    """

    images: Callable[[int], Tensor]
    shapes: Numbers
    textures: Numbers
    categories: Mapping[str, Sequence[int]]
    protocol: Mapping[str, Any]


def conflict_images(root: str, categories: str, crop: EvaluationCrop, limit: int | None, num_classes: int) -> Conflict:
    """Open the cue-conflict images below a root.

    Args:
        root: of the sets.
        categories: which classes are which category, as of ``CueConflictDataModule``.
        crop: resize and crop.
        limit: images drawn at random, always the same ones; None for all.
        num_classes: of the network.

    Raises:
        UserError: there are none, or the network does not have the categories' classes.
    """
    module = CueConflictDataModule(root, categories=categories, evaluation=crop)
    module.limit = limit
    module.setup("test")
    module.check_classes(num_classes)
    table = module.open_samples()
    images = Images(table, crop, module.numbers_taken(len(table)), module.name)
    assert table.table.texture is not None
    labels, textures = table.table.label[images.numbers], table.table.texture[images.numbers]

    def take(place: int) -> Tensor:
        return images.take(np.array([place]))

    return Conflict(take, labels, textures, module.category_classes, images.protocol)
