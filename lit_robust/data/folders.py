"""Plain folders of images, for people who have no shards yet."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import Literal, get_args

import numpy as np
from tqdm import tqdm

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.same_classes import check_same_names
from lit_robust.data.settings import check_choice
from lit_robust.data.split import Reading, Split, TableSplit
from lit_robust.data.table import SampleTable
from lit_robust.data.transforms import EvaluationCrop, TrainingCrop
from lit_robust.reference import imagenet_names, imagenet_wnids
from lit_robust.shards import IMAGE_EXTENSIONS
from lit_robust.shards.address import is_url, shown

Labels = Literal["sorted", "imagenet"]


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
        """Return the content of file ``number``.

        Raises:
            DataError: it is gone or cannot be read.
        """
        try:
            return (self.folder / self.key(number)).read_bytes()
        except OSError as error:
            raise DataError(
                f"The image {self.name(number)} cannot be read ({error.strerror}): put it back, or start the run again."
            ) from error


class ImageFolderDataModule(ImageNetDataModule):
    """Images in ``<root>/<name>/train/<class>/`` and ``<root>/<name>/val/<class>/``; the test loader has that name.

    Shards (`lit-robust data shard`) are checked more strictly and read faster from network file systems.

    Args:
        root: folder that holds the set's folder.
        labels: ``sorted`` numbers the class folders in the order of their names; ``imagenet`` takes their names for
            WordNet ids, and the place of each among ImageNet's 1,000 for its number.
        training: crop and flip of training images.
        evaluation: resize and crop of validation and test images.
        batch_size: samples a rank and training batch.
        eval_batch_size: samples a rank and evaluation batch.
        num_workers: processes a loader that read and decode; 0 does both in the main process.
        seed: of order and augmentation; null takes that of ``seed_everything``.
        name: subfolder of ``root``, and name of the test loader.
        reading: how the files are read; its ``label`` does not apply.
    """

    def __init__(
        self,
        root: str | Path = "data",
        labels: Labels = "sorted",
        training: TrainingCrop = TrainingCrop(),
        evaluation: EvaluationCrop = EvaluationCrop(),
        batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 8,
        seed: int | None = None,
        name: str = "imagenet",
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, training, evaluation, batch_size, eval_batch_size, num_workers, seed, name, reading)
        check_choice("labels", labels, get_args(Labels))
        self.labels = labels

    def open(self, split: str) -> Split:
        """List the images of a split, whose class folders must be those of ``train``, where that is there.

        Raises:
            UserError: the folder is missing, or has other classes.
        """
        if is_url(self.root):
            raise UserError(f"Plain folders are listed, which {shown(self.root)} cannot: copy them to a disk.")
        found = open_folders(Path(self.root) / self.name / split, self.labels)
        train = Path(self.root) / self.name / "train"
        if self.labels == "sorted" and train.is_dir():
            # A network learned the numbers of these.
            check_same_names(str(train), class_folders(train), found.where, found.class_names)
        return found


def open_folders(folder: Path, labels: Labels) -> TableSplit:
    """List the images of a folder of class folders, at any depth within each.

    Args:
        folder: holds one folder a class.
        labels: ``sorted`` by folder name, or ``imagenet`` by WordNet id.

    Raises:
        UserError: there is no such folder, a class folder is empty or is no WordNet id.
        DataError: a folder cannot be listed, or a link leads nowhere or back.
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
    names = class_folders(folder)
    numbers = _class_numbers(folder, names, labels)
    above = frozenset(map(_identity, (folder, *folder.resolve().parents)))
    files: list[str] = []
    sizes: list[int] = []
    digest = hashlib.sha256()
    for name in tqdm(names, f"listing {folder.name}", unit="class", delay=2):
        found = sorted(_images(folder / name, name, above))
        if not found:
            raise UserError(f"{folder / name} holds no images, but would be a class: remove it.")
        for path, size in found:
            digest.update(f"{path}\0{size}\0".encode("utf-8", "surrogateescape"))
        files += [path for path, _ in found]
        sizes.append(len(found))
    if not files:
        raise UserError(f"{folder} holds no class folders: it must have one folder of images a class.")
    lengths = np.array(sizes)
    return TableSplit(
        where=str(folder),
        num_classes=1000 if labels == "imagenet" else len(names),
        class_names=imagenet_names() if labels == "imagenet" else tuple(names),
        protocol={"files_sha256": digest.hexdigest()},
        table=SampleTable(
            [FolderReader(folder, files)], np.repeat(np.array(numbers, dtype=np.int64), lengths), lengths
        ),
    )


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in a folder, sorted.

    Raises:
        DataError: the folder cannot be listed, or a link leads nowhere.
    """
    return sorted(entry.name for entry, status in _entries(folder) if S_ISDIR(status.st_mode))


def _class_numbers(folder: Path, names: list[str], labels: Labels) -> list[int]:
    if labels == "sorted":
        return list(range(len(names)))
    numbers = {wnid: number for number, wnid in enumerate(imagenet_wnids())}
    for name in names:
        if name not in numbers:
            raise UserError(f"{folder / name} is none of ImageNet's 1,000 WordNet ids: set labels to sorted.")
    return [numbers[name] for name in names]


def _images(folder: Path, below: str, above: frozenset[tuple[int, int]]) -> list[tuple[str, int]]:
    """Return path and size of every image in a class folder, at any depth; links are followed.

    Args:
        folder: the folder to list.
        below: its path in the results.
        above: device and inode of every folder that it lies in.

    Raises:
        DataError: a folder cannot be listed, or a link leads nowhere or back.
    """
    here = _identity(folder)
    if here in above:
        raise DataError(f"The link {folder} leads back to a folder that it lies in: remove the link.")
    found = []
    for entry, status in _entries(folder):
        path = f"{below}/{entry.name}"
        if S_ISDIR(status.st_mode):
            found += _images(folder / entry.name, path, above | {here})
        elif entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
            found.append((path, status.st_size))
    return found


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Give what lies in a folder, with what each link leads to; names that begin with a dot are passed over.

    Raises:
        DataError: the folder cannot be listed, or a link leads nowhere.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed ({error.strerror}): make it readable.") from error
    for entry in visible:
        try:
            yield entry, entry.stat()
        except OSError as error:
            what = "link" if entry.is_symlink() else "file"
            raise DataError(
                f"The {what} {entry.path} cannot be followed ({error.strerror}): mend or remove it."
            ) from error
