"""`lit-robust data cue-conflict`: images with the shape of one category and the texture of another.

The files have the names and folders of the published set (rgeirhos/texture-vs-shape),
``<shape>/<shape><i>-<texture><j>.png``, so that every tool of the field reads them, and `lit-robust data shard`, too.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError, check_count
from lit_robust.core.files import atomic_path, file_sha256, write_text
from lit_robust.core.seeds import key_seed
from lit_robust.data.loading.transforms import EvaluationCrop, resize
from lit_robust.data.packing.derivation import encode
from lit_robust.data.packing.deriving import worked
from lit_robust.data.packing.encode import is_picture
from lit_robust.shards import decode_rgb
from lit_robust.shards.write import remove_leftovers, sole_writer

RECORD = "made-by.json"


class CuePair(NamedTuple):
    """One image to make.

    Attributes:
        shape: category of the content.
        texture: category of the texture.
        content: which of the category's contents, from 0.
        pattern: which of the category's textures, from 0.
    """

    shape: str
    texture: str
    content: int
    pattern: int

    @property
    def name(self) -> str:
        """The published form, counted from 1."""
        return f"{self.shape}/{self.shape}{self.content + 1}-{self.texture}{self.pattern + 1}"


class StyleTransfer(Protocol):
    """Gives contents the textures of other images."""

    @property
    def described(self) -> Mapping[str, Any]:
        """Plain values that decide the pixels."""

    def transfer(self, contents: Tensor, textures: Tensor, keys: Sequence[str]) -> Tensor:
        """Return uint8 ``[B, 3, H, W]`` of contents and textures, uint8 of that shape, and the names of the results."""


def category_images(folder: Path) -> dict[str, list[Path]]:
    """Return category to its images, in the order of their names.

    Args:
        folder: with a folder of images for each category, in small letters.

    Raises:
        UserError: it has none, or a category cannot be part of an image's name.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name one with a folder of images for each category.")
    found = {
        below.name: sorted(file for file in below.iterdir() if file.is_file() and is_picture(file.name))
        for below in sorted(folder.iterdir())
        if below.is_dir() and not below.name.startswith(".")
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise UserError(f"{folder} has no folder with images: make one for each category, such as {folder}/cat.")
    for name in found:
        if not (name.isascii() and name.isalpha() and name.islower()):
            raise UserError(f"The category {name!r} of {folder} has other letters than a to z: rename its folder.")
    return found


def conflict_pairs(contents: Mapping[str, int], textures: Mapping[str, int], each: int, seed: int) -> list[CuePair]:
    """Return ``each`` images of every ordered pair of categories, those without conflict, too.

    Args:
        contents: category to the number of its contents.
        textures: category to the number of its textures.
        each: images a pair of categories; the published set has 5.
        seed: of the choice; each pair of categories has a stream of its own.

    Raises:
        UserError: a pair has fewer than ``each`` combinations.
    """
    pairs = []
    for shape, shapes in contents.items():
        for texture, patterns in textures.items():
            if shapes * patterns < each:
                raise UserError(
                    f"{shapes} contents of {shape} and {patterns} textures of {texture} make {shapes * patterns} "
                    f"images, not {each}: give more of them, or a smaller --each."
                )
            random = np.random.Generator(np.random.PCG64(key_seed(seed, "cue-conflict", f"{shape}-{texture}")))
            chosen = sorted(random.permutation(shapes * patterns)[:each].tolist())
            pairs += [CuePair(shape, texture, *divmod(number, patterns)) for number in chosen]
    return pairs


@dataclass(frozen=True, kw_only=True)
class ConflictSet:
    """A set of cue-conflict images to make.

    Attributes:
        contents: folder with a folder of images for each category, whose shape they show.
        textures: likewise; pictures of texture alone, such as skin, or many copies of an object side by side.
        folder: to write.
        transfer: how.
        crop: of contents and textures.
        tiles: copies of a texture picture along each side.
        each: images an ordered pair of categories.
        seed: of the choice of contents and textures.
        batch: images at a time; it is part of the settings, as larger batches are rounded otherwise.
    """

    contents: Path
    textures: Path
    folder: Path
    transfer: StyleTransfer
    crop: EvaluationCrop = EvaluationCrop()
    tiles: int = 1
    each: int = 1
    seed: int = 0
    batch: int = 4

    def __post_init__(self) -> None:
        for name, value in (("tiles", self.tiles), ("each", self.each), ("batch", self.batch)):
            check_count(name, value, 1)
        check_count("seed", self.seed, 0)
        if self.crop.crop is None or self.crop.crop % self.tiles:
            raise UserError(f"crop is {self.crop.crop}: give a number of pixels that {self.tiles} tiles divide.")

    @cached_property
    def images(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """The contents and the textures."""
        return category_images(self.contents), category_images(self.textures)

    @cached_property
    def pairs(self) -> list[CuePair]:
        """What is to be made."""
        contents, textures = ({name: len(files) for name, files in part.items()} for part in self.images)
        return conflict_pairs(contents, textures, self.each, self.seed)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What distinguishes this set from others: settings, and a digest of each kind of source."""
        digests = [
            hashlib.sha256(
                json.dumps([[file_sha256(file) for file in files] for files in part.values()]).encode()
            ).hexdigest()
            for part in self.images
        ]
        said = {
            "by": "lit-robust data cue-conflict",
            **self.transfer.described,
            "contents_sha256": digests[0],
            "textures_sha256": digests[1],
            **self.crop.protocol(),
            "tiles": self.tiles,
            "each": self.each,
            "seed": self.seed,
            "batch": self.batch,
        }
        return {**said, "sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}

    def path(self, pair: CuePair) -> Path:
        """Return where an image stands."""
        return self.folder / f"{pair.name}.png"

    def begin(self) -> None:
        """Write the record, or compare it with the one that is there.

        Raises:
            UserError: the folder holds another set, or something else.
        """
        file = self.folder / RECORD
        if file.exists():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read ({error}): remove the folder, or choose another.") from error
            if found != json.loads(json.dumps(self.record)):
                raise UserError(f"{self.folder} is of other images or settings: choose another output, or remove it.")
        elif self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds files that this command did not write: choose another output.")
        else:
            write_text(file, json.dumps(self.record, indent=1) + "\n")
        for shape in self.images[0]:
            remove_leftovers(self.folder / shape, r"[a-z0-9-]+\.png")

    def missing(self) -> list[int]:
        """Return the places of the batches that lack an image."""
        places = range(-(-len(self.pairs) // self.batch))
        return [place for place in places if not all(self.path(pair).is_file() for pair in self.chosen(place))]

    def chosen(self, place: int) -> list[CuePair]:
        """Return the pairs of a batch."""
        return self.pairs[place * self.batch : (place + 1) * self.batch]

    def write(self, place: int, report: Callable[[int], object]) -> None:
        """Write the images of a batch; see `lit_robust.data.packing.deriving.Writer`."""
        pairs = self.chosen(place)
        contents = torch.stack([self.content(pair.shape, pair.content) for pair in pairs])
        textures = torch.stack([self.texture(pair.texture, pair.pattern) for pair in pairs])
        made = self.transfer.transfer(contents, textures, [pair.name for pair in pairs])
        for pair, image in zip(pairs, made, strict=True):
            with atomic_path(self.path(pair)) as temporary:
                temporary.write_bytes(encode(image, "png"))
        report(len(pairs))

    def content(self, category: str, number: int) -> Tensor:
        """Return a content, uint8 ``[3, S, S]``."""
        return self._read(self.images[0][category][number])

    def texture(self, category: str, number: int) -> Tensor:
        """Return a texture, uint8 ``[3, S, S]``: its tiles side by side."""
        picture = self._read(self.images[1][category][number])
        if self.tiles == 1:
            return picture
        side = picture.shape[-1] // self.tiles
        return resize(picture, (side, side)).repeat(1, self.tiles, self.tiles)

    def _read(self, file: Path) -> Tensor:
        return self.crop(decode_rgb(file.read_bytes(), file, ("BMP", "JPEG", "PNG", "TIFF", "WEBP")))


def make_conflicts(made: ConflictSet, workers: int) -> int:
    """Make what is missing of a set, and return how many images that were.

    Args:
        made: the set.
        workers: processes, each of which makes a batch at a time; 0 for this one.

    Raises:
        UserError: the folder holds another set, another run writes it, or a source does not fit.
    """
    check_count("workers", workers, 0)
    _ = made.record, made.pairs  # What is wrong with the sources is said before anything is written.
    with sole_writer(made.folder, "cue-conflict", "the cue-conflict images"):
        made.begin()
        tasks = [(0, place) for place in made.missing()]
        total = sum(len(made.chosen(place)) for _, place in tasks)
        with tqdm(total=total, desc="transferring", unit="image") as progress:
            for _ in worked([made], tasks, workers, progress):
                pass
    return total
