"""One cell of a corrupted set: every image of a split under one corruption at one severity, as shards."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.core.seeds import stream_seed
from lit_robust.data.cells import GENERATED
from lit_robust.data.split import TableSplit
from lit_robust.data.transforms import EvaluationCrop
from lit_robust.shards import ShardWriter, decode_rgb
from lit_robust.shards.listing import read_info
from lit_robust.shards.lock import sole_writer
from lit_robust.shards.write import remove_leftovers
from lit_robust.stimuli.corruptions import FrostPictures, corrupt

BATCH = 16
SPLIT = "val"
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Settings:
    """What decides the pixels of a corrupted set.

    Attributes:
        source: digest of the clean shards.
        seed: of all draws; each image and cell has a stream of its own.
        resize: shorter side before the crop, in pixels; None for none.
        crop: side of the central square, in pixels; None for none.
        frost: digest of the frost pictures; None for drawn frost.
        encoding: ``jpg``, quality 85 as the published files, or ``png``.
    """

    source: str
    seed: int
    resize: int | None
    crop: int | None
    frost: str | None
    encoding: Literal["jpg", "png"]


@dataclass(frozen=True)
class CellWriter:
    """Writes cells, each whole or not at all.

    Attributes:
        clean: the images.
        output: folder of all cells.
        settings: what decides the pixels.
        frost: pictures of frost; None draws frost.
        shard_size: images a tar.
    """

    clean: TableSplit
    output: Path
    settings: Settings
    frost: FrostPictures | None
    shard_size: int

    @cached_property
    def mark(self) -> dict[str, Any]:
        """What tells a cell of these images and settings from others, in its info file."""
        return {"by": "lit-robust data corrupt", **asdict(self.settings)}

    def is_finished(self, cell: str) -> bool:
        """Return whether a cell is there, of these settings, with all its tars.

        Raises:
            UserError: its folder is of something else.
        """
        folder = self.output / cell
        info = read_info(folder)[1]
        if not info and not any(folder.glob("*.tar")):
            return False
        if info.get(GENERATED) != self.mark:
            raise UserError(f"{folder} is of other images or settings: choose another output, or remove it.")
        entry = info["splits"].get(SPLIT)
        return entry is not None and all((folder / file).is_file() for file in entry["filenames"])

    def write(self, cell: str, tell: Callable[[int], object]) -> None:
        """Write one cell, alone: another run may write others.

        Args:
            cell: its name, ``<corruption>/<severity>``.
            tell: is given the number of images after each few; what it raises ends the writing.

        Raises:
            UserError: the cell is of other settings, another run writes it, or the disk is full.
            DataError: an image cannot be read.
        """
        folder = self.output / cell
        with sole_writer(folder, "corrupting", "the corrupted images"):
            if self.is_finished(cell):
                return
            # What is there bears our mark and was left by a killed run, or is a cell that lost a shard.
            for leftover in folder.glob("*.tar"):
                leftover.unlink()
            remove_leftovers(folder, r"_info\.json")
            # The mark is there before the images are: nobody ever takes them for the published ones.
            write_text(folder / "_info.json", json.dumps({GENERATED: self.mark, "splits": {}}, indent=1))
            table, classes = self.clean.table, (self.clean.num_classes, self.clean.class_names)
            with ShardWriter(folder, SPLIT, self.shard_size, num_classes=classes[0], class_names=classes[1]) as writer:
                for begin in range(0, len(self.clean), BATCH):
                    numbers = range(begin, min(begin + BATCH, len(self.clean)))
                    for number, image in zip(numbers, self.encoded(cell, numbers), strict=True):
                        members = {self.settings.encoding: image, "cls": b"%d" % table.label[number]}
                        writer.write(table.key(number), members)
                    tell(len(numbers))

    def encoded(self, cell: str, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield the files of some images of a cell."""
        corruption, _, severity = cell.partition("/")
        images = [self._decode(number) for number in numbers]
        # The streams are those of `ImageNetCLikeDataModule`: written or as loaded, pixels are the same before encoding.
        seeds = [stream_seed(self.settings.seed, "corruption", number) for number in numbers]
        # Images of one size go together, which is faster.
        together = len({image.shape for image in images}) == 1
        groups = [slice(0, len(images))] if together else [slice(place, place + 1) for place in range(len(images))]
        for group in groups:
            batch = torch.stack(images[group])
            for image in corrupt(batch, corruption, int(severity), seeds[group], self.frost):
                yield encode(image, self.settings.encoding)

    def _decode(self, number: int) -> Tensor:
        reader, row = self.clean.table.find(number)
        crop = EvaluationCrop(self.settings.resize, self.settings.crop)
        return crop(decode_rgb(reader.image_bytes(row), reader.name(row)))


def encode(image: Tensor, encoding: Literal["jpg", "png"]) -> bytes:
    """Return uint8 ``[3, H, W]`` as a file."""
    file = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if encoding == "jpg":
        picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    else:
        picture.save(file, "PNG")
    return file.getvalue()
