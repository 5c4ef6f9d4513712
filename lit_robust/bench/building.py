"""How fast a memory is built: of features that are ready, beside the disk, and of images, beside the backbone."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer

from lit_robust.batch import Batch, TrainingSet
from lit_robust.bench.evaluating import NUM_CLASSES
from lit_robust.bench.loops import Repeatable, quiet
from lit_robust.bench.subjects import synchronise
from lit_robust.bench.timing import alternate, ratio, table
from lit_robust.memory import Manifest, begin_memory, resume_memory
from lit_robust.models import Network
from lit_robust.modules import CacheModule
from lit_robust.precision import full_precision

BATCH = 256  # Keys that come at once.
IMAGES, IMAGE_BATCH, SIZE = 256, 32, 224  # What the backbone gets: images, of them at once, their side in pixels.


def bench_writing(labels: NDArray[np.int64], dimensions: int, folder: Path, rounds: int) -> str:
    """Time writing a memory of ready features, beside writing as many bytes to one file, and return the table.

    Args:
        labels: ascending, ``[K]``.
        dimensions: of a key.
        folder: where memories are built and removed again.
        rounds: measurements of each, at least 1.
    """
    features = [np.random.default_rng(seed).random((BATCH, dimensions), np.float32) for seed in range(4)]
    shuffled = np.random.default_rng(0).permutation(labels)
    count = len(labels)
    manifest = Manifest({}, "", "", {}, count, dimensions, int(labels[-1]) + 1, "float32", "bench")
    size = count * dimensions * 4 / 1e9

    def batches() -> Iterator[NDArray[np.int64]]:
        for place in range(0, count, BATCH):
            yield np.arange(place, min(place + BATCH, count))

    def build(labels: NDArray[np.int64], folder: Path) -> None:
        begin_memory(folder / "memory", manifest, labels)
        builder = resume_memory(folder / "memory", manifest, labels)
        norms = np.ones(BATCH, np.float32)
        for turn, numbers in enumerate(batches()):
            builder.write(numbers, features[turn % 4][: len(numbers)], norms[: len(numbers)])
        _flush(folder)

    def write(folder: Path) -> None:
        with (folder / "plain").open("wb") as file:
            for turn, numbers in enumerate(batches()):
                file.write(features[turn % 4][: len(numbers)].tobytes())
        _flush(folder)

    def measure(work: Callable[[Path], None]) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            begin = time.perf_counter()
            work(Path(name))
            seconds = time.perf_counter() - begin
            shutil.rmtree(name)
            Path(name).mkdir()
        return size / seconds

    figures = alternate(
        {
            "a memory, images sorted by class": partial(measure, partial(build, labels)),
            "a memory, images shuffled": partial(measure, partial(build, shuffled)),
            "one file, from beginning to end": partial(measure, write),
        },
        rounds,
        "GB/s",
    )
    *ours, other = figures.values()
    shares = ", ".join(f"{figure.name}, {ratio(figure, other):.2f}" for figure in ours)
    title = f"Writing {size:.2f} GB of keys that are ready, and waiting for the disk"
    return f"{table(title, [*ours, other], {})}\n\nOf one file's rate: {shares}."


def bench_building(network: str, folder: Path, rounds: int) -> str:
    """Time building a memory of random images, beside the backbone's bare forward passes, and return the table.

    Args:
        network: the backbone, such as ``torchvision/resnet18``, with random weights.
        folder: where memories are built and removed again.
        rounds: measurements of each, at least 1.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = RandomTrainingImages(device)
    layer = "avgpool"
    ours, bare = "a memory built of images", "bare forward passes"
    figures = alternate(
        {
            ours: partial(_build, network, layer, images, folder),
            bare: partial(_pass, network, images, device),
        },
        rounds,
        "images/s",
    )
    title = f"Building of {IMAGES} images of {SIZE} px that are ready, {network}, {layer}"
    return table(title, list(figures.values()), {bare: ratio(figures[ours], figures[bare])})


def _build(network: str, layer: str, images: "RandomTrainingImages", folder: Path) -> float:
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=folder) as name, quiet():
        module = CacheModule(Network(network, NUM_CLASSES), memory=Path(name) / "memory", layer=layer)
        trainer = Trainer(
            devices=1,
            default_root_dir=name,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[clock],
        )
        with redirect_stdout(StringIO()):  # Where a memory lies that is gone in a moment is no news.
            trainer.fit(module, images)
    return IMAGES / clock.seconds


def _pass(network: str, images: "RandomTrainingImages", device: torch.device) -> float:
    module = CacheModule(Network(network, NUM_CLASSES)).to(device).eval()
    synchronise(device)
    begin = time.perf_counter()
    with torch.no_grad(), full_precision(device.type):
        for batch in images.train_dataloader():
            module.classifier(batch.image)
    synchronise(device)
    return IMAGES / (time.perf_counter() - begin)


class Clock(Callback):
    """Takes the time from before the first batch until the last key is written."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        synchronise(pl_module.device)
        self.begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        synchronise(pl_module.device)
        self.seconds = time.perf_counter() - self.begin


class RandomTrainingImages(LightningDataModule):
    """Random images to remember, all of them on the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        shape = (IMAGE_BATCH, 3, SIZE, SIZE)
        # All batches have the same images, which the network does not know.
        self.images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
        self.labels = np.arange(IMAGES) % NUM_CLASSES

    @property
    def training_set(self) -> TrainingSet:
        """What is to be remembered."""
        return TrainingSet(self.labels, {})

    def train_once(self, numbers: NDArray[np.int64]) -> None:
        """Nothing was remembered before: all are given."""

    def train_dataloader(self) -> Repeatable:
        """Return the batches."""
        return Repeatable([self._batch(place) for place in range(0, IMAGES, IMAGE_BATCH)])

    def _batch(self, place: int) -> Batch:
        index = torch.arange(place, place + IMAGE_BATCH, device=self.images.device)
        label = torch.from_numpy(self.labels)[place : place + IMAGE_BATCH].to(self.images.device)
        return Batch(self.images, label, index, torch.ones_like(index, dtype=torch.bool))


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
