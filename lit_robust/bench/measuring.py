"""What benchmarks share: subjects, clocks, counts of operations, peak memory, and the table of what came out."""

import logging
import multiprocessing
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.hardware import read_processor
from lit_robust.core.precision import Precision
from lit_robust.core.processes import end_with_parent
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.models import Classifier
from lit_robust.shards import decode_rgb


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark's table.

    Attributes:
        name: what was measured.
        value: the median.
        unit: of the value.
        low: the least of all rounds.
        high: the greatest of all rounds.
        rounds: the value of each round, in order; empty where rounds were not kept.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    rounds: tuple[float, ...] = field(default=(), compare=False)


def ratio(ours: Figure, other: Figure) -> float:
    """Return the median over the rounds of ours / other: a round's two measurements met the machine in one mood."""
    return median(mine / theirs for mine, theirs in zip(ours.rounds, other.rounds, strict=True))


def alternate(contenders: Mapping[str, Callable[[], float]], rounds: int, unit: str) -> dict[str, Figure]:
    """Run each contender once a round, in turn, so that a machine's moods meet all alike.

    Args:
        contenders: name to a function that measures once and returns the value.
        rounds: at least 1.
        unit: of the values.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    with tqdm(total=rounds * len(contenders), desc="measuring", leave=False) as progress:
        for _ in range(rounds):
            for name, measure in contenders.items():
                values[name].append(measure())
                progress.update()
    return {
        name: Figure(name, median(found), unit, min(found), max(found), tuple(found)) for name, found in values.items()
    }


def table(title: str, figures: Sequence[Figure], ratios: Mapping[str, float]) -> str:
    """Return a Markdown table.

    Args:
        title: stands above it.
        figures: the lines.
        ratios: name of a figure to what stands in the last column, the ratio of ours to it.
    """
    lines = [f"### {title}", "", "| | median | least and most | ours / this |", "| --- | ---: | ---: | ---: |"]
    for figure in figures:
        ratio = f"{ratios[figure.name]:.2f}" if figure.name in ratios else ""
        spread = f"{figure.low:.4g} to {figure.high:.4g}"
        lines.append(f"| {figure.name} | {figure.value:.4g} {figure.unit} | {spread} | {ratio} |")
    return "\n".join(lines)


def machine(packages: Sequence[str]) -> str:
    """Return one line on what was measured on: GPU if any, processor, its bfloat16, cores, threads, load, versions."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    cores = len(os.sched_getaffinity(0))
    threads = torch.get_num_threads()
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    processor = read_processor()
    bf16 = ", ".join(processor.bf16_flags) or "no bf16 instructions"
    return (
        f"{gpu}{processor.name} ({bf16}), {cores} cores, {threads} threads, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {versions}"
    )


class PlainClassifier(nn.Module):
    """A network as peers are used with: normalisation in front, single precision, torch's usual memory layout.

    Args:
        classifier: ours, whose weights it shares where the layout allows; copied otherwise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network.to(memory_format=torch.contiguous_format)
        self.register_buffer("mean", classifier.mean.clone())
        self.register_buffer("std", classifier.std.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def read_images(folder: Path, split: str, count: int, crop: EvaluationCrop) -> tuple[Tensor, Tensor]:
    """Return the first images of a split, float32 ``[count, 3, H, W]`` in [0, 1], and their labels ``[count]``.

    Raises:
        UserError: the split has fewer images.
    """
    source = open_table(folder, split, Reading())
    if len(source) < count:
        raise UserError(f"{folder} has {len(source)} images in {split}, fewer than {count}: lower --images.")
    reader = source.table.readers[0]
    pixels = [crop(decode_rgb(reader.image_bytes(row), reader.name(row))) for row in range(count)]
    return torch.stack(pixels).float().div_(255), torch.tensor(source.table.label[:count]).long()


def check_peers_norm(attack: PGD) -> None:
    """Raise a UserError for a norm that not every peer attacks in."""
    if attack.norm == "l1":
        raise UserError(
            "Of the peers Foolbox alone attacks in l1, and leaves the ball: set the attack's norm to l2 or linf."
        )


def precise(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of a precision: nothing, or bfloat16 autocast."""
    return nullcontext() if precision == "fp32" else _autocast(device)


@contextmanager
def _autocast(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes: once on a processor, on an accelerator at least for a second in a row.

    Alone it would begin on an idle device, and be timed with the launch of its first kernels.
    """
    synchronise(device)
    begin, taken = time.perf_counter(), 0
    while not taken or (device.type != "cpu" and time.perf_counter() - begin < 1):
        work()
        taken += 1
    synchronise(device)
    return (time.perf_counter() - begin) / taken


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done its work, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


STATUS = Path("/proc/self/status")


def peak_memory(build: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> float:
    """Return the peak memory of a step, of what it works on and of what it leaves for the next, in MiB.

    A fresh process builds the step and takes it twice; the second time the optimiser's state is there, too.

    Args:
        build: gives the step; a function of a module, which the other process imports.
        arguments: of ``build``.
    """
    return _in_fresh_process(weigh, build, arguments)


def _in_fresh_process(
    measure: Callable[[Callable[..., Callable[[], None]], tuple[Any, ...]], float],
    build: Callable[..., Callable[[], None]],
    arguments: tuple[Any, ...],
) -> float:
    # Where the process is killed, for want of memory, the pool says so.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        return pool.submit(measure, build, arguments).result()


def extra_memory(build: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> float:
    """Return what a step holds at its peak beyond what it was built with, in MiB, in a fresh process.

    Args:
        build: gives the step; a function of a module, which the other process imports.
        arguments: of ``build``.
    """
    return _in_fresh_process(weigh_step, build, arguments)


def weigh_step(build: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> float:
    """Return what taking a step adds to this process at its peak, in MiB; on a CPU as the kernel accounts for it."""
    step = build(*arguments)
    if torch.cuda.is_available():
        step()  # The first also brings the libraries' own work space.
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Building may have held more for a while: the account of the peak begins anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    resident = status_mib("VmRSS")
    step()
    return status_mib("VmHWM") - resident


def weigh(build: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> float:
    """Return what building a step and taking it twice adds to this process at its peak, in MiB.

    On a GPU that is what torch allocated. On a CPU it is resident memory, work space of the convolutions included, less
    what the process held before: Python with torch, the same for every step, would bring all ratios nearer to 1.
    """
    before = 0.0 if torch.cuda.is_available() else status_mib("VmRSS")
    step = build(*arguments)
    for _ in range(2):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not `getrusage`: at exec a new process's record there starts from the peak of the one that made it.
    return status_mib("VmHWM") - before


def status_mib(name: str) -> float:
    """Return a line of the kernel's account of this process, such as ``VmRSS``, in MiB (proc(5))."""
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 2**10


class _Counter(TorchDispatchMode):
    """Adds up torch's own formulas; its ``FlopCounterMode`` also follows modules, which ``autograd.grad`` forbids."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **given, out_val=result)
        return result


def count_operations(step: Callable[[], object]) -> int:
    """Return the floating-point operations of a step's convolutions and matrix products.

    A multiplication and an addition are two. Torch counts what it is asked for, so a gradient that nothing needs is not
    among them: the number tells how many passes a step takes on any machine.
    """
    counter = _Counter()
    with counter:
        step()
    return counter.total


def product_rate(device: torch.device, precision: Precision) -> float:
    """Return the operations a second of a large matrix product, about the most that a network can reach."""
    size = 8192 if device.type == "cuda" else 2048
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    left, right = (torch.rand(size, size, device=device).to(kind) for _ in range(2))
    seconds = [seconds_of(lambda: left @ right, device) for _ in range(6)]
    return 2 * size**3 / median(seconds[1:])  # The first also chooses an algorithm.


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from telling of devices, and warning of missing loggers, in every pass."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


class Repeatable:
    """A loader over batches that are there; of a bare list Lightning would make one loader a batch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def first(self) -> Batch:
        """Return the first batch, as a loader of shards does."""
        return self.batches[0]
