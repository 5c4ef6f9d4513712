"""Plain folders of images, for people who have no shards yet."""

import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.split import Reading, Split, TableSplit
from lit_robust.data.table import SampleTable
from lit_robust.data.transforms import EvaluationCrop, TrainingCrop
from lit_robust.errors import DataError, UserError
from lit_robust.reference import imagenet_names, imagenet_wnids
from lit_robust.shards import IMAGE_EXTENSIONS

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
        self.labels = labels

    def open(self, split: str) -> Split:
        """List the images of a split."""
        return open_folders(Path(self.root) / self.name / split, self.labels)


def open_folders(folder: Path, labels: Labels) -> TableSplit:
    """List the images of a folder of class folders, at any depth within each.

    Args:
        folder: holds one folder a class.
        labels: ``sorted`` by folder name, or ``imagenet`` by WordNet id.

    Raises:
        UserError: there is no such folder, a class folder is empty or is no WordNet id.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: check the path.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    numbers = _class_numbers(folder, names, labels)
    files: list[str] = []
    sizes: list[int] = []
    digest = hashlib.sha256()
    for name in tqdm(names, f"listing {folder.name}", unit="class", delay=2):
        found = sorted(_images(folder / name, name))
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


def _class_numbers(folder: Path, names: list[str], labels: Labels) -> list[int]:
    if labels == "sorted":
        return list(range(len(names)))
    numbers = {wnid: number for number, wnid in enumerate(imagenet_wnids())}
    for name in names:
        if name not in numbers:
            raise UserError(f"{folder / name} is none of ImageNet's 1,000 WordNet ids: set labels to sorted.")
    return [numbers[name] for name in names]


def _images(folder: Path, below: str) -> list[tuple[str, int]]:
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _images(folder / entry.name, f"{below}/{entry.name}")
        elif entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
            found.append((f"{below}/{entry.name}", entry.stat().st_size))
    return found
