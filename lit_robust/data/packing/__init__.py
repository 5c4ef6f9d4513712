"""Folders and tars of images, as people have them on disk, to shards."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lit_robust.core.errors import UserError, check_count
from lit_robust.core.files import check_space
from lit_robust.data.packing.classes import Labels
from lit_robust.data.packing.encode import named_by_ending
from lit_robust.data.packing.layouts import Options, find_images
from lit_robust.data.packing.recognise import Layout
from lit_robust.data.packing.sources import check_source, open_source
from lit_robust.data.packing.write import Packer, check_place, make_plan
from lit_robust.data.settings import LARGEST_SIDE
from lit_robust.shards.info import read_info
from lit_robust.shards.write import shard_stem, sole_writer

__all__ = ["Labels", "Layout", "Packed", "default_workers", "shard_images"]


@dataclass(frozen=True)
class Packed:
    """What `shard_images` did.

    Attributes:
        images: in the shards.
        shards: that make up the split, or all cells.
        written: of these by this call; the others an earlier one had finished.
        left: names of the files in the source that were not packed.
    """

    images: int
    shards: int
    written: int
    left: tuple[str, ...]

    def __str__(self) -> str:
        kept = self.shards - self.written
        parts = [f"{self.images:,} images in {_count(self.shards, 'shard')}"]
        if kept:
            parts.append(f"{kept:,} of them finished before" if self.written else "all of them finished before")
        if self.left:
            parts.append(f"not packed: {named_by_ending(self.left)}")
        return "; ".join(parts)


def shard_images(
    source: Path,
    output: Path,
    split: str,
    layout: Layout = "auto",
    labels: Labels = "auto",
    label_file: Path | None = None,
    categories: str = "imagenet",
    some_classes: bool = False,
    shard_size: int = 1000,
    seed: int = 0,
    resize: int | None = None,
    workers: int | None = None,
    say: Callable[[str], object] = print,
) -> Packed:
    """Pack the images of a folder or tar into shards; their bytes are copied unless they are to be resized.

    The same arguments give the same bytes, whatever the number of workers, and also where a run was killed and started
    again, which keeps the shards that were finished. An ImageNet-C tree goes into a folder a cell.

    Args:
        source: folder, tar, or tar compressed by gzip, bzip2 or xz.
        output: folder for the shards; another split may be there already.
        split: name of the split.
        layout: how classes follow from folders and names; ``auto`` recognises it.
        labels: how class numbers follow from classes: ``sorted``, ``imagenet``, or ``auto`` by the layout.
        label_file: classes of images that all lie in one folder.
        categories: for cue-conflict, ``imagenet`` or a JSON file.
        some_classes: the class folders are some of those of a split that the output has already, and have its numbers.
        shard_size: images a tar.
        seed: of the order.
        resize: shorter side in px to which larger images are brought; None copies all.
        workers: threads; None for one a processor, at most 8.
        say: is given one sentence, what the source was taken for, before anything is written.

    Raises:
        UserError: the source has no images of the layout, the output holds another set, or the disk is too small.
        DataError: the archive, a label file or an image is damaged, or an archive leads out of itself.
    """
    check_count("shard_size", shard_size, 1)
    check_count("workers", 1 if workers is None else workers, 1)
    check_count("seed", seed, 0)
    check_count("resize", 1 if resize is None else resize, 1, LARGEST_SIDE)
    check_source(source, output)
    with sole_writer(output, shard_stem(output, split)), open_source(source, output, split) as tree:
        known = _known_classes(output, split) if some_classes else ()
        found = find_images(tree, layout, split, Options(labels, label_file, categories, known))
        say(found.said)
        plans = [make_plan(part, tree, output, split, shard_size, seed, resize) for part in found.sets]
        for plan in plans:
            check_place(plan)
        check_space(output, sum(shard.size for plan in plans for shard in plan.missing()), f"The shards of {source}")
        count = sum(len(part.images) for part in found.sets)
        with tqdm(total=count, desc=f"packing {split}", unit="image") as progress:
            packer = Packer(tree, workers or default_workers(), progress)
            written = sum(packer.pack(plan) for plan in plans)
    return Packed(count, sum(len(plan.shards) for plan in plans), written, tuple(found.left))


def _known_classes(output: Path, split: str) -> Sequence[str]:
    """Return the names of the classes of another split in the output."""
    path, info = read_info(output)
    for other, entry in info.get("splits", {}).items():
        if other != split and entry.get("class_names"):
            names: list[str] = entry["class_names"]
            return names
    raise UserError(f"{path} names no classes of another split: pack that one first, such as train.")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def default_workers() -> int:
    """Return the number of processors that this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8)
