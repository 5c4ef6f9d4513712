"""Folders of images, as people unpack them, to shards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from lit_robust.data.cue_conflict import cues, read_categories
from lit_robust.errors import DataError, UserError
from lit_robust.reference import imagenet_names, imagenet_wnids
from lit_robust.shards import ShardWriter
from lit_robust.shards.listing import read_info

Layout = Literal["class-folders", "wnid-names", "cue-conflict"]
Labels = Literal["sorted", "imagenet"]
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Source:
    """One image to pack: its file, its key in the shards, and its class."""

    file: Path
    key: str
    label: int


@dataclass(frozen=True)
class Listing:
    """All images of a folder, and what the index shall say of their classes."""

    images: Sequence[Source]
    class_names: Sequence[str] = ()
    categories: Mapping[str, Sequence[int]] | None = None


def shard_images(
    source: Path,
    output: Path,
    split: str,
    layout: Layout,
    labels: Labels,
    categories: str,
    shard_size: int,
    seed: int,
) -> int:
    """Pack the images of a folder into shards; their bytes are copied.

    Args:
        source: folder of images.
        output: folder for the shards; another split may be there already.
        split: name of the split.
        layout: how classes follow from folders and names.
        labels: how class numbers follow from classes.
        categories: for cue-conflict, ``imagenet`` or a JSON file.
        shard_size: images a tar.
        seed: of the order.

    Returns:
        How many images were packed.

    Raises:
        UserError: there are no images, or they are not in this layout.
    """
    if not source.is_dir():
        raise UserError(f"There is no folder {source}: unpack the images first, and name their folder.")
    if layout == "class-folders":
        listing = _class_folders(source, labels)
    elif layout == "wnid-names":
        listing = _wnid_names(source)
    else:
        listing = _cue_conflict(source, categories)
    if not listing.images:
        raise UserError(f"No images in {source} in the layout {layout}: look at `lit-robust data shard --help`.")
    _check_classes(output, split, listing.class_names)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(listing.images))
    with ShardWriter(
        output,
        split,
        shard_size=shard_size,
        class_names=listing.class_names,
        categories=listing.categories,
    ) as writer:
        for place in tqdm(order, desc=f"packing {split}", unit="image"):
            image = listing.images[place]
            ending = image.file.suffix[1:].lower()
            # WebDataset ends a key at the first dot of its last part.
            folder, slash, base = image.key.rpartition("/")
            writer.write(
                folder + slash + base.replace(".", "_"),
                {ending: image.file.read_bytes(), "cls": str(image.label).encode()},
            )
    return len(order)


def _check_classes(output: Path, split: str, names: Sequence[str]) -> None:
    for other, entry in read_info(output)[1].get("splits", {}).items():
        if other != split and entry.get("class_names", list(names)) != list(names):
            raise UserError(
                f"The split {other!r} in {output} has other classes than these images: give each set its own folder."
            )


def _images_in(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.suffix.lower() in ENDINGS and file.is_file())


def _class_folders(source: Path, labels: Labels) -> Listing:
    folders = sorted(entry for entry in source.iterdir() if entry.is_dir() and entry.name[0] not in "._")
    for folder in folders:
        if not any(_images_in(folder)):
            raise UserError(f"{folder} holds no images right inside it, but would be a class: remove it.")
    names = [folder.name for folder in folders]
    numbers = _imagenet_numbers(names) if labels == "imagenet" else list(range(len(names)))
    images = [
        Source(file, f"{folder.name}/{file.stem}", number)
        for folder, number in zip(folders, numbers, strict=True)
        for file in _images_in(folder)
    ]
    return Listing(images, imagenet_names() if labels == "imagenet" else _english(names))


def _wnid_names(source: Path) -> Listing:
    files = list(_images_in(source))
    numbers = _imagenet_numbers([file.stem.split("_")[0] for file in files])
    images = [Source(file, file.stem, number) for file, number in zip(files, numbers, strict=True)]
    return Listing(images, imagenet_names())


def _cue_conflict(source: Path, categories: str) -> Listing:
    shapes = sorted(entry.name for entry in source.iterdir() if entry.is_dir())
    images = []
    for number, shape in enumerate(shapes):
        for file in _images_in(source / shape):
            if cues(file.stem)[0] != shape:
                raise DataError(f"{file} lies in the folder of {shape}, but its name says {cues(file.stem)[0]}.")
            images.append(Source(file, f"{shape}/{file.stem}", number))
    return Listing(images, shapes, read_categories(categories))


def _imagenet_numbers(wnids: Sequence[str]) -> list[int]:
    numbers = {wnid: number for number, wnid in enumerate(imagenet_wnids())}
    unknown = [wnid for wnid in wnids if wnid not in numbers]
    if unknown:
        raise UserError(
            f"{unknown[0]!r} is none of ImageNet's 1,000 WordNet ids: use --labels sorted for other classes."
        )
    return [numbers[wnid] for wnid in wnids]


def _english(names: Sequence[str]) -> list[str]:
    english = dict(zip(imagenet_wnids(), imagenet_names(), strict=True))
    return [english.get(name, name) for name in names]
