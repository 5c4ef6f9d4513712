"""`lit-robust bench data`: how fast images are loaded, against what others use, and what a worker costs."""

import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_robust.bench.measuring import Figure, alternate, machine, table
from lit_robust.bench.scaling import measure_costs, scaling_table
from lit_robust.core.processes import end_with_parent
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import Share
from lit_robust.data.loading.samples import EvaluationSamples, SampleTable, TrainingSamples
from lit_robust.data.loading.splits import Reading, TableSplit, open_table
from lit_robust.data.loading.transforms import EvaluationCrop, TrainingCrop
from lit_robust.shards import ShardWriter, decode_rgb

BATCH = 64
IMAGENET = 1_281_167  # training images of ILSVRC-2012
MIB = 1 << 20
PACKAGES = ("torch", "torchvision", "webdataset", "simplejpeg", "pillow")


def bench_loading(folder: Path, split: str, images: int, rounds: int) -> str:
    """Measure loading from the shards of ``folder``, and return the tables.

    Args:
        folder: of one set, such as ``data/sample/imagenet``.
        split: name of the split; its images are repeated.
        images: how many are loaded in one measurement, rounded up to whole batches, at least two.
        rounds: measurements of each contender.
    """
    torch.set_num_threads(1)  # As a worker process has it.
    images = max(-(-images // BATCH), 2) * BATCH  # The first batch is not timed.
    source = open_table(folder, split, Reading())
    with tempfile.TemporaryDirectory(prefix="lit-robust-bench-") as place:
        shards, files = _write_copies(source, images, Path(place))
        rates = alternate(
            {
                "decode and crop alone, no loader": lambda: _bare(shards, images),
                "lit_robust, evaluation": lambda: _steady(_ours(shards, images), images),
                "torchvision ImageFolder, evaluation": lambda: _steady(_image_folder(files), images),
                "webdataset pipeline, evaluation": lambda: _steady(_pipeline(shards), images),
                "lit_robust, training": lambda: _steady(_ours_training(shards), images),
                "torchvision ImageFolder, training": lambda: _steady(_image_folder(files, training=True), images),
            },
            rounds,
            "images/s",
        )
        more = scaling_table(measure_costs(_training_samples(shards), _ours_training(shards)))
    ours = {kind: rates[f"lit_robust, {kind}"].value for kind in ("evaluation", "training")}
    ratios = {
        name: ours["training" if name.endswith("training") else "evaluation"] / figure.value
        for name, figure in rates.items()
        if not name.startswith("lit_robust")
    }
    title = f"Loading, one worker process, {images} images of {folder.name} ({split}), batches of {BATCH}"
    cost = table(f"A loader of {IMAGENET:,} images, one worker process", worker_cost(folder, split), {})
    return f"{machine(PACKAGES)}\n\n{table(title, list(rates.values()), ratios)}\n\n{cost}\n\n{more}"


def worker_cost(folder: Path, split: str) -> list[Figure]:
    """Measure what a loader of ImageNet's size costs to build, and each worker's own memory, for each start method."""
    figures: list[Figure] = []
    for method in ("fork", "forkserver", "spawn"):
        # Each in a process of its own: what a forked worker shares depends on what its parent has done before.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as fresh:
            seconds, empty, used = fresh.submit(_weigh_worker, folder, split, method).result()
        if not figures:
            figures.append(Figure("building it", seconds, "s", seconds, seconds))
        figures.append(Figure(f"own memory of a worker, {method}", used, "MiB", used, used))
        figures.append(Figure(f"of that: a worker of torch that loads nothing, {method}", empty, "MiB", empty, empty))
    return figures


class _Nothing(Dataset[int]):
    """A data set that costs nothing."""

    def __getitem__(self, number: int) -> int:
        return number

    def __len__(self) -> int:
        return 20


def _weigh_worker(folder: Path, split: str, method: str) -> tuple[float, float, float]:
    """Return seconds to build the loader, MiB of a worker that does nothing, and MiB of ours after ten batches."""
    begin = time.perf_counter()
    large = _enlarged(open_table(folder, split, Reading()), IMAGENET)
    source, plan = large.training(Share(BATCH, 0, 1), Reading(), seed=0)
    loader = PlannedLoader(TrainingSamples(source, TrainingCrop(), 0), plan, 1, False, False, start_method=method)
    seconds = time.perf_counter() - begin
    weights = []
    for tried in (loader, DataLoader(_Nothing(), batch_size=None, num_workers=1, multiprocessing_context=method)):
        batches = iter(tried)
        for _ in range(10):
            next(batches)
        weights.append(max(_own_memory(child.pid) / MIB for child in multiprocessing.active_children() if child.pid))
        del batches
        gc.collect()
    return seconds, weights[1], weights[0]


def _enlarged(source: TableSplit, count: int) -> TableSplit:
    """Return a split of ``count`` samples that are the source's, again and again."""
    rows = np.arange(count) % len(source)
    table = SampleTable(
        readers=source.table.readers,
        label=source.table.label[rows],
        lengths=np.array([count]),
        row=rows,
    )
    return replace(source, table=table)


def _own_memory(process: int) -> int:
    """Return the bytes that a process shares with no other (USS)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def _write_copies(source: TableSplit, images: int, place: Path) -> tuple[Path, Path]:
    """Write the source's images ``images`` times in all, as shards and as a folder a class; the bytes are the same."""
    shards, files = place / "shards", place / "files"
    reader = source.table.readers[0]
    with ShardWriter(shards, "val", num_classes=source.classes) as writer:
        for number in range(images):
            row = number % len(source)
            data, label = reader.image_bytes(row), int(source.table.label[row])
            writer.write(f"{number:06d}", {"jpg": data, "cls": b"%d" % label})
            folder = files / f"{label:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:06d}.jpg").write_bytes(data)
    return shards, files


def _steady(batches: Iterable[Any], images: int) -> float:
    """Return images a second from the first batch to the last, so without the start of the process."""
    received = iter(batches)
    first = _size(next(received))
    begin = time.perf_counter()
    count = sum(_size(batch) for batch in received)
    seconds = time.perf_counter() - begin
    if first + count < images:
        raise RuntimeError(f"{first + count} of {images} images came")
    return count / seconds


def _size(batch: Any) -> int:
    return len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)


def _bare(shards: Path, images: int) -> float:
    split = open_table(shards, "val", Reading())
    reader, crop = split.table.readers[0], EvaluationCrop()
    encoded = [reader.image_bytes(number) for number in range(images)]
    begin = time.perf_counter()
    for data in encoded:
        crop(decode_rgb(data, ""))
    return images / (time.perf_counter() - begin)


def _ours(shards: Path, images: int) -> PlannedLoader:
    source, plan = open_table(shards, "val", Reading()).evaluation(Share(BATCH, 0, 1))
    return PlannedLoader(EvaluationSamples(source, EvaluationCrop()), plan, 1, False, keeps_workers=False)


def _ours_training(shards: Path) -> PlannedLoader:
    _, plan = open_table(shards, "val", Reading()).training(Share(BATCH, 0, 1), Reading(), seed=0)
    return PlannedLoader(_training_samples(shards), plan, 1, False, keeps_workers=False)


def _training_samples(shards: Path) -> TrainingSamples:
    source, _ = open_table(shards, "val", Reading()).training(Share(BATCH, 0, 1), Reading(), seed=0)
    return TrainingSamples(source, TrainingCrop(), 0)


def _transform(training: bool) -> Callable[[Any], torch.Tensor]:
    from torchvision.transforms import v2

    crops: list[Any] = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    centre: list[Any] = [v2.Resize(256), v2.CenterCrop(224)]
    # uint8 as ours delivers; most recipes pay for floats here, too.
    composed: Callable[[Any], torch.Tensor] = v2.Compose([*(crops if training else centre), v2.PILToTensor()])
    return composed


def _image_folder(files: Path, training: bool = False) -> DataLoader[Any]:
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(files), _transform(training))
    return DataLoader(dataset, batch_size=BATCH, shuffle=training, num_workers=1)


def _pipeline(shards: Path) -> DataLoader[Any]:
    import webdataset

    tars = sorted(str(tar) for tar in shards.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(_transform(training=False), int).batched(BATCH)
    return DataLoader(dataset, batch_size=None, num_workers=1)
