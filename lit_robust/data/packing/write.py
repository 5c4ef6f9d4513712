"""What stands in which shard, decided before a byte is written; then the packing, by several threads."""

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import atomic_path, file_sha256, write_text
from lit_robust.data.packing.encode import JPEG_QUALITY, extension_of, is_copied, packed_extension, readable, shrink
from lit_robust.data.packing.layouts import Image, ImageSet
from lit_robust.data.packing.sources import Tree
from lit_robust.shards.info import read_info
from lit_robust.shards.listing import ALIASES
from lit_robust.shards.scan import scan_shard, skip
from lit_robust.shards.write import (
    BLOCK,
    any_shard,
    check_absent,
    check_key,
    end_bytes,
    header,
    remove_leftovers,
    sample_bytes,
    shard_name,
    shard_stem,
    unfinished_mark,
    write_entry,
)

FORM = 1  # Counts changes of this file that would give other bytes for the same images.
DIGEST = "plan_sha256"


@dataclass(frozen=True)
class Shard:
    """One tar to write.

    Attributes:
        name: of the tar.
        images: in its order.
        size: bytes of the tar, as if all images were copied.
        copied: whether they are; else the tar has another size.
    """

    name: str
    images: Sequence[Image]
    size: int
    copied: bool


@dataclass(frozen=True)
class PackingPlan:
    """How one split is packed.

    Attributes:
        folder: of the shards.
        split: name of the split.
        stem: first part of the tars' names.
        shards: in order.
        resize: shorter side in px of images that are larger; None copies all.
        digest: sha256 over all that decides the tars' bytes: keys, sizes and labels of the images, their order, the
            shards' size, the resizing. The pixels are not read for it.
        extras: what the info file says of the split, apart from its tars.
    """

    folder: Path
    split: str
    stem: str
    shards: Sequence[Shard]
    resize: int | None
    digest: str
    extras: dict[str, Any]

    @property
    def mark(self) -> Path:
        """The hidden file that holds the digest while the split is unfinished."""
        return unfinished_mark(self.folder, self.stem)

    def missing(self) -> list[Shard]:
        """Return the shards that are yet to write.

        Raises:
            DataError: a tar of a shard's name is not what it must be.
        """
        lacking = []
        for shard in self.shards:
            path = self.folder / shard.name
            if not path.exists():
                lacking.append(shard)
            elif differs := _difference(path, shard):
                raise DataError(f"{path} {differs}: remove it, and run this again.")
        return lacking


def make_plan(
    found: ImageSet, tree: Tree, output: Path, split: str, shard_size: int, seed: int, resize: int | None
) -> PackingPlan:
    """Shuffle the images by a seed and deal them to shards.

    Args:
        found: the images.
        tree: where they are.
        output: folder for the shards, or of the cells' folders.
        split: name of the split.
        shard_size: images a tar, at least 1.
        seed: of the order, not negative.
        resize: shorter side in px; None copies the bytes.

    Raises:
        UserError: a name cannot be a key, or the shards cannot be named so.
        DataError: an image is empty, or two have one key.
    """
    folder = output / found.folder
    # A cell's own folder is called 1 to 5: the tars bear the whole name.
    prefix = "-".join([output.resolve().name, *filter(None, found.folder.split("/"))])
    stem = shard_stem(folder, split, prefix)
    _check_images(found.images, tree)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(found.images)).tolist()
    shards: list[Shard] = []
    digest = hashlib.sha256()
    for begin in range(0, len(order), shard_size):
        images = [found.images[place] for place in order[begin : begin + shard_size]]
        for image in images:
            line = [image.key, extension_of(image.file.name), image.file.size, image.label]
            digest.update(json.dumps(line).encode())
        copied = resize is None and all(is_copied(extension_of(image.file.name)) for image in images)
        shards.append(Shard(shard_name(stem, len(shards)), images, _tar_size(images), copied))
    extras = _extras(found, resize)
    digest.update(json.dumps([FORM, stem, shard_size, resize, extras]).encode())
    extras[DIGEST] = digest.hexdigest()
    return PackingPlan(folder, split, stem, shards, resize, digest.hexdigest(), extras)


def check_place(plan: PackingPlan) -> bool:
    """Return whether the info file has the split of this very plan already.

    The plan of an unfinished split stands in a hidden file, that of a finished one in the info file.

    Raises:
        UserError: the folder holds the split, finished or not, from another plan, or a split of other classes.
    """
    _, info = read_info(plan.folder)
    splits: dict[str, Any] = info.get("splits", {})
    for other, entry in splits.items():
        names = plan.extras.get("class_names", [])
        if other != plan.split and entry.get("class_names", names) != names:
            raise UserError(
                f"The split {other!r} in {plan.folder} has other classes than these images: give each set its own "
                "folder, or --some-classes where these are some of the same classes."
            )
    if splits.get(plan.split, {}).get(DIGEST) == plan.digest:
        return True
    if plan.split not in splits and ALIASES.get(plan.split) not in splits and plan.mark.exists():
        try:
            begun = json.loads(plan.mark.read_text(encoding="utf-8"))[DIGEST]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{plan.mark} cannot be read ({error}): remove it and {plan.stem}-*.tar.") from error
        if begun == plan.digest:
            return False
        raise UserError(
            f"{plan.folder} holds a part of {plan.split!r} packed from other images or with other options: run that "
            f"command to its end, remove {plan.mark.name} and {plan.stem}-*.tar there, or choose another folder."
        )
    check_absent(plan.folder, plan.split, plan.stem)
    return False


def _check_images(images: Sequence[Image], tree: Tree) -> None:
    seen: dict[str, str] = {}
    for image in images:
        check_key(image.key)
        if len(image.key.encode()) > 90:  # Shorter names fit any tar.
            header(f"{image.key}.{packed_extension(extension_of(image.file.name), resized=False)}", image.file.size)
        if not image.file.size:
            raise DataError(f"{image.file.name} in {tree.name} is empty: replace or remove it.")
        if image.key in seen:
            raise DataError(
                f"{seen[image.key]} and {image.file.name} in {tree.name} would both be {image.key} in the shards, "
                "where a name has no ending and no dots: rename or remove one."
            )
        seen[image.key] = image.file.name


def _difference(path: Path, shard: Shard) -> str | None:
    """Return what a tar has instead of what it must have, or None."""
    if shard.copied:
        size = path.stat().st_size
        return None if size == shard.size else f"has {size} bytes instead of {shard.size}"
    # Nobody knows in advance how large images become: the tar must be whole, and hold the samples of the plan.
    scan = scan_shard(path, on_defect=skip)
    if scan.defects:
        return f"is not whole, as at byte {scan.defects[0].offset} {scan.defects[0].what}"
    same = [key.decode("utf-8", "surrogateescape") for key in scan.keys] == [image.key for image in shard.images]
    if not same or scan.label.tolist() != [image.label for image in shard.images]:
        return f"holds other samples than the {len(shard.images)} that belong there"
    return None


def _tar_size(images: Sequence[Image]) -> int:
    # Besides the image there are its header, and the header and one block of its label.
    size = sum(3 * BLOCK + image.file.size + -image.file.size % BLOCK for image in images)
    return size + len(end_bytes(size))


def _extras(found: ImageSet, resize: int | None) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if found.class_names:
        extras = {"num_classes": len(found.class_names), "class_names": list(found.class_names)}
    if found.categories is not None:
        extras["categories"] = {name: list(numbers) for name, numbers in found.categories.items()}
    if resize is not None:
        extras["resize"] = {"shorter_side": resize, "filter": "bicubic, antialiased", "jpeg_quality": JPEG_QUALITY}
    return extras


class _StoppedError(Exception):
    """Another thread failed, or the user ended the run."""


@dataclass(frozen=True)
class Packer:
    """Writes the shards of a plan.

    Args:
        tree: where the images are.
        workers: threads; they wait for disks, and libraries let go of Python's lock while they encode.
        progress: counts images.
    """

    tree: Tree
    workers: int
    progress: "tqdm[None]"

    def pack(self, plan: PackingPlan) -> int:
        """Write the shards that are missing, then the info file, and return how many shards were written.

        Raises:
            UserError: the folder belongs to another plan, or cannot be written.
            DataError: an image cannot be read.
        """
        finished = check_place(plan)
        remove_leftovers(plan.folder, f"{any_shard(plan.stem)}|{re.escape(plan.mark.name)}")
        lengths = [len(shard.images) for shard in plan.shards]
        missing = plan.missing()
        self._count(sum(lengths) - sum(len(shard.images) for shard in missing))
        if missing or not finished:
            write_text(plan.mark, json.dumps({"by": "lit-robust data shard", DIGEST: plan.digest}) + "\n")
            self._write(plan, missing)
            names = [shard.name for shard in plan.shards]
            with ThreadPoolExecutor(self.workers) as pool:
                digests = list(pool.map(file_sha256, [plan.folder / name for name in names]))
            write_entry(plan.folder, plan.split, names, lengths, digests, plan.extras)
        plan.mark.unlink(missing_ok=True)
        return len(missing)

    def _count(self, images: int) -> None:
        with self.progress.get_lock():
            self.progress.update(images)

    def _write(self, plan: PackingPlan, missing: list[Shard]) -> None:
        stop = Event()
        with ThreadPoolExecutor(self.workers) as pool:
            tasks = [pool.submit(self._write_shard, plan, shard, stop) for shard in missing]
            try:
                for task in as_completed(tasks):
                    task.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _write_shard(self, plan: PackingPlan, shard: Shard, stop: Event) -> None:
        with atomic_path(plan.folder / shard.name) as temporary, temporary.open("wb") as file:
            for image in shard.images:
                if stop.is_set():
                    raise _StoppedError
                name, extension = f"{image.file.name} in {self.tree.name}", extension_of(image.file.name)
                content = readable(self.tree.read(image.file), extension, name)
                if plan.resize is not None:
                    content = shrink(content, plan.resize, packed_extension(extension, resized=False), name)
                extension = packed_extension(extension, plan.resize is not None)
                file.write(sample_bytes(image.key, {extension: content, "cls": b"%d" % image.label}))
                self._count(1)
            file.write(end_bytes(file.tell()))
