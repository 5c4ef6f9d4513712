"""`lit-robust bench memory`: asking against the bare product and Faiss, building against the forward passes."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from lit_robust.bench.evaluation import NUM_CLASSES
from lit_robust.bench.measuring import (
    Figure,
    Repeatable,
    alternate,
    extra_memory,
    machine,
    product_rate,
    quiet,
    ratio,
    seconds_of,
    synchronise,
    table,
)
from lit_robust.core.batch import Batch, TrainingSet
from lit_robust.core.precision import choose_precision, full_precision
from lit_robust.memory import Manifest, chunks_of, class_log_sums, log_probabilities, nearest_keys
from lit_robust.memory.build import begin_memory, resume_memory
from lit_robust.memory.continuous import CHUNK_KEYS, CHUNK_KEYS_ON_GPU
from lit_robust.memory.nearest import import_faiss, version_of_faiss
from lit_robust.models import Network
from lit_robust.modules import CacheModule

THETA = 50.0


@dataclass(frozen=True)
class MemorySubject:
    """The memory that is asked, of random keys of unit length.

    Attributes:
        keys: how many.
        dimensions: of each.
        num_classes: that they are of, as many keys each as possible.
        queries: asked at once.
        neighbours: k of the nearest neighbours.
        backbone: network whose features a memory is built of, such as ``torchvision/resnet18``.
        folder: where a memory is built and removed again.
    """

    keys: int
    dimensions: int
    num_classes: int
    queries: int
    neighbours: int
    backbone: str
    folder: Path

    @property
    def labels(self) -> Tensor:
        """Ascending labels ``[keys]``."""
        return torch.arange(self.keys) * self.num_classes // self.keys


def bench_memory(subject: MemorySubject, rounds: int) -> str:
    """Time retrieval in turns, weigh it in processes of its own, time building, and return the tables.

    Args:
        subject: what is asked.
        rounds: measurements of each, at least 1.
    """
    import_faiss()  # Not after minutes of measuring.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = [
        _retrieval(subject, rounds, device),
        _neighbours(subject, rounds, device),
        bench_writing(subject.labels.numpy(), subject.dimensions, subject.folder, rounds),
        bench_building(subject.backbone, subject.folder, rounds),
    ]
    few, many = subject.queries, 8 * subject.queries
    peaks = {
        f"forward, {few} queries": extra_memory(forward_step, (subject, few)),
        f"forward, {many} queries": extra_memory(forward_step, (subject, many)),
        f"forward and backward, {few} queries": extra_memory(gradient_step, (subject, few)),
        f"forward and backward, {many} queries": extra_memory(gradient_step, (subject, many)),
        f"nearest {subject.neighbours}, {many} queries": extra_memory(nearest_step, (subject, many)),
    }
    lines = [f"{name}: {value:.0f} MiB" for name, value in peaks.items()]
    title = "### Peak memory of a step beyond keys and queries, the answers included"
    packages = ("torch", "numpy")
    return "\n\n".join([f"{machine(packages)}, {version_of_faiss()}", *parts, title, "  \n".join(lines)])


def make(subject: MemorySubject, queries: int) -> tuple[Tensor, Tensor]:
    """Return keys and queries of unit length, on the GPU in bfloat16 where there is one."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.empty(subject.keys, subject.dimensions)
    for part in torch.split(keys, 1 << 14):
        part.copy_(F.normalize(torch.randn(part.shape, generator=generator)))
    asked = F.normalize(torch.randn(queries, subject.dimensions, generator=generator))
    return (keys.cuda().bfloat16(), asked.cuda()) if torch.cuda.is_available() else (keys, asked)


def forward_step(subject: MemorySubject, queries: int) -> Callable[[], None]:
    """Return a step that asks."""
    keys, asked = make(subject, queries)
    answer = _asking(subject, keys)

    def step() -> None:
        answer(asked)

    return step


def gradient_step(subject: MemorySubject, queries: int) -> Callable[[], None]:
    """Return a step that asks and takes the gradient of the first class's log-probabilities."""
    keys, asked = make(subject, queries)
    answer = _asking(subject, keys)

    def step() -> None:
        wanted = asked.clone().requires_grad_(True)
        answer(wanted)[:, 0].sum().backward()  # type: ignore[no-untyped-call]

    return step


def nearest_step(subject: MemorySubject, queries: int) -> Callable[[], None]:
    """Return a step that finds the nearest neighbours."""
    keys, asked = make(subject, queries)

    def step() -> None:
        nearest_keys(asked, keys, subject.neighbours)

    return step


def _asking(subject: MemorySubject, keys: Tensor) -> Callable[[Tensor], Tensor]:
    chunks = chunks_of(subject.labels.to(keys.device), CHUNK_KEYS_ON_GPU if keys.is_cuda else CHUNK_KEYS)
    return lambda queries: log_probabilities(class_log_sums(queries, keys, chunks, subject.num_classes, THETA))


def _retrieval(subject: MemorySubject, rounds: int, device: torch.device) -> str:
    keys, queries = make(subject, subject.queries)
    answer, labels = _asking(subject, keys), subject.labels.to(device)
    gradient = gradient_step(subject, subject.queries)

    def plain() -> Tensor:
        # As it stands in the paper; the one-hot values are made beforehand, as its code does.
        return (THETA * queries.to(keys) @ keys.T).float().softmax(1) @ values

    values = F.one_hot(labels, subject.num_classes).float()
    works: dict[str, Callable[[], object]] = {
        "continuous": lambda: answer(queries),
        "bare product of queries and keys": lambda: queries.to(keys) @ keys.T,
        "softmax over all keys, times one-hot values": plain,
        "continuous, with its gradient": gradient,
    }
    figures = _seconds(works, rounds, device)
    ours = figures["continuous"]
    ratios = {name: ratio(ours, figure) for name, figure in figures.items() if figure is not ours}
    title = (
        f"{subject.keys:,} keys of {subject.dimensions} dimensions and {subject.num_classes} classes, "
        f"{subject.queries} queries, {str(keys.dtype).removeprefix('torch.')} keys"
    )
    rate = 2 * subject.queries * subject.keys * subject.dimensions / ours.value
    precision = choose_precision("auto", device.type)
    peak = product_rate(device, precision)
    note = f"Continuous retrieval does {rate / 1e12:.3g} Tflop/s; a large product in {precision} {peak / 1e12:.3g}."
    return f"{table(title, list(figures.values()), ratios)}\n\n{note}"


def _neighbours(subject: MemorySubject, rounds: int, device: torch.device) -> str:
    keys, queries = make(subject, subject.queries)
    faiss = import_faiss()
    index = faiss.IndexFlatIP(subject.dimensions)
    index.add(keys.float().cpu().numpy())
    asked = queries.float().cpu().numpy()
    k = subject.neighbours
    works: dict[str, Callable[[], object]] = {
        f"nearest {k}": lambda: nearest_keys(queries, keys, k),
        f"Faiss's flat index, nearest {k}, on the processor": lambda: index.search(asked, k),
    }
    figures = _seconds(works, rounds, device)
    ours, other = figures.values()
    return table(f"The {k} nearest of the same keys", [ours, other], {other.name: ratio(ours, other)})


def _seconds(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Figure]:
    for work in works.values():
        work()  # The first time also chooses algorithms.
    return alternate({name: partial(seconds_of, work, device) for name, work in works.items()}, rounds, "s")


BATCH = 256  # Keys that come at once.
IMAGES, IMAGE_BATCH, SIZE = 256, 32, 224  # What the backbone gets: images, of them at once, their side in pixels.


def bench_writing(labels: NDArray[np.int64], dimensions: int, folder: Path, rounds: int) -> str:
    """Time writing a memory of ready features, against writing as many bytes to one file, and return the table.

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
    """Time building a memory of random images, against the backbone's bare forward passes, and return the table.

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
        with redirect_stdout(StringIO()):  # The place of a memory that lasts a moment does not matter.
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
