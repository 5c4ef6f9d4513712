"""Plain folders of images, for people who have no shards yet."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lit_robust.core.errors import DataError, UserError, check_choice
from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.loading.samples import SampleTable
from lit_robust.data.loading.splits import Split, TableSplit
from lit_robust.data.packing.classes import DIGITS, number_classes
from lit_robust.data.packing.encode import extension_of, is_picture, named_by_ending, readable
from lit_robust.data.packing.layouts import FolderListing, class_images
from lit_robust.data.packing.sources import Tree, folders_in
from lit_robust.data.settings import check_given

Labels = Literal["sorted", "imagenet"]
log = logging.getLogger(__name__)


class FolderReader:
    """Gives the encoded image of any file.

    Args:
        folder: that the files lie in.
        files: their paths below it.
    """

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder = folder
        self._names = np.array([os.fsencode(file) for file in files])  # One block of memory, shared after a fork.

    def key(self, number: int) -> str:
        """Return the path of file ``number`` below the folder."""
        return os.fsdecode(bytes(self._names[number]))

    def name(self, number: int) -> str:
        """Return what to call file ``number`` in a message."""
        return str(self.folder / self.key(number))

    def image_bytes(self, number: int) -> bytes:
        """Return the content of file ``number``, as a PNG where shards do not hold its format.

        Raises:
            DataError: it is gone, or cannot be read or decoded.
        """
        path = self.folder / self.key(number)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"The image {path} cannot be read ({error.strerror}): put it back, or start the run again."
            ) from error
        return readable(content, extension_of(path.name), path)


@dataclass(eq=False, repr=False)
class ImageFolderDataModule(ImageNetDataModule):
    """Images in ``<root>/<name>/train/<class>/`` and ``<root>/<name>/val/<class>/``; the test loader has that name.

    Classes, their numbers and their images are those that `lit-robust data shard` finds, too. Shards are checked more
    strictly and read faster from network file systems. ``reading.label`` does not apply.

    Attributes:
        labels: ``sorted`` numbers the class folders in the order of their names, or of their numbers where all names
            are numbers; ``imagenet`` takes their names for WordNet ids, and the place of each among ImageNet's 1,000
            for its number.
        some_classes: test on images of some of the training's classes alone; the results say so.
    """

    _: KW_ONLY
    labels: Labels = "sorted"
    some_classes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("labels", self.labels, get_args(Labels))
        check_given("some_classes", self.some_classes)

    def open(self, split: str) -> Split:
        """List the images of a split, whose classes have the numbers that a network learned in ``train``.

        Raises:
            UserError: the folder is missing, or has other classes.
        """
        self.check_on_disk("Plain folders are listed")
        folder = Path(self.root) / self.name / split
        train = folder.parent / "train"
        if self.labels == "imagenet" or split == "train" or not train.is_dir():
            return open_folders(folder, self.labels)
        known = class_folders(train)
        found = open_folders(folder, self.labels, known)
        there = set(found.table.label.tolist())
        if len(there) == len(known):
            return found
        if not self.some_classes:
            first = next(name for number, name in enumerate(known) if number not in there)
            raise UserError(
                f"{folder} has images of {len(there)} of the {len(known)} classes of {train}, none of {first!r}: add "
                "the others, or set some_classes to true to test on these alone."
            )
        restricted = f"{len(there)} of {len(known)} classes"
        return replace(found, protocol={**found.protocol, "restricted": restricted})


def open_folders(folder: Path, labels: Labels, known: Sequence[str] = ()) -> TableSplit:
    """List the images of a folder of class folders, at any depth within each.

    Args:
        folder: holds one folder a class.
        labels: ``sorted`` by folder name, or ``imagenet`` by WordNet id.
        known: names of all classes, in the order of their numbers, where the folder may hold some of them only.

    Raises:
        UserError: there is no such folder, it cannot be read, or a class folder is empty or not of a class.
        DataError: a link leads back to a folder that it lies in.
    """
    try:
        there = folder.is_dir()
    except PermissionError as error:
        raise DataError(
            f"{folder} cannot be reached ({error.strerror}): make the folders above it readable."
        ) from error
    if not there:
        if any(folder.parent.glob("*.tar")):
            raise UserError(f"{folder.parent} holds shards, not folders of images: read it with ImageNetDataModule.")
        raise UserError(f"There is no folder {folder}: check the path; it must have one folder of images a class.")
    tree = Tree(folder, str(folder))
    if packed := next((file.tar for file in tree.files if file.tar is not None), None):
        raise UserError(f"{packed} is the tar of a class: unpack it, or pack {folder} by `lit-robust data shard`.")
    pictures = [file for file in tree.files if is_picture(file.name)]
    (found,), rule = class_images(FolderListing(tree, "", pictures, ()), labels, known)
    images = found.images
    if not images:
        raise UserError(f"{folder} holds no class folders with images: it must have one folder of images a class.")
    if all(DIGITS.fullmatch(name) for name in tree.folders("")):
        log.warning("%s: classes %s.", folder, rule)
    taken = {image.file.name for image in images}
    if left := [file.name for file in tree.files if file.name not in taken]:
        log.warning("%s: not read are %s.", folder, named_by_ending(left))
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.file.name}\0{image.file.size}\0".encode("utf-8", "surrogateescape"))
    names = [image.file.name for image in images]
    label = np.array([image.label for image in images], dtype=np.int64)
    changes = np.flatnonzero(np.diff(label, prepend=-1, append=-1))
    class_names = found.class_names or [str(number) for number in range(int(label.max()) + 1)]
    return TableSplit(
        where=str(folder),
        num_classes=len(class_names),
        class_names=tuple(class_names),
        protocol={"files_sha256": digest.hexdigest()},
        # The images of a class lie side by side, as those of a shard do.
        table=SampleTable([FolderReader(folder, names)], label, np.diff(changes)),
    )


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in a folder, in the order of their numbers.

    Raises:
        UserError: the folder cannot be listed.
    """
    numbers = number_classes(sorted(folders_in(folder)), "sorted").numbers
    return sorted(numbers, key=numbers.__getitem__)
