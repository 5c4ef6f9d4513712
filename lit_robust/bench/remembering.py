"""`lit-robust bench memory`: retrieval beside the matrix product it cannot do without, and beside Faiss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.bench.building import bench_building, bench_writing
from lit_robust.bench.memory import extra_memory
from lit_robust.bench.operations import product_rate
from lit_robust.bench.subjects import seconds_of
from lit_robust.bench.timing import Figure, alternate, machine, ratio, table
from lit_robust.memory import chunks_of, class_log_sums, log_probabilities, nearest_keys
from lit_robust.memory.chunks import KEYS, KEYS_ON_GPU
from lit_robust.memory.index import import_faiss, version_of_faiss

THETA = 50.0


@dataclass(frozen=True)
class Subject:
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


def bench_memory(subject: Subject, rounds: int) -> str:
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


def make(subject: Subject, queries: int) -> tuple[Tensor, Tensor]:
    """Return keys and queries of unit length, on the GPU in bfloat16 where there is one."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.empty(subject.keys, subject.dimensions)
    for part in torch.split(keys, 1 << 14):
        part.copy_(F.normalize(torch.randn(part.shape, generator=generator)))
    asked = F.normalize(torch.randn(queries, subject.dimensions, generator=generator))
    return (keys.cuda().bfloat16(), asked.cuda()) if torch.cuda.is_available() else (keys, asked)


def forward_step(subject: Subject, queries: int) -> Callable[[], None]:
    """Return a step that asks."""
    keys, asked = make(subject, queries)
    answer = _asking(subject, keys)

    def step() -> None:
        answer(asked)

    return step


def gradient_step(subject: Subject, queries: int) -> Callable[[], None]:
    """Return a step that asks and takes the gradient of the first class's log-probabilities."""
    keys, asked = make(subject, queries)
    answer = _asking(subject, keys)

    def step() -> None:
        wanted = asked.clone().requires_grad_(True)
        answer(wanted)[:, 0].sum().backward()  # type: ignore[no-untyped-call]

    return step


def nearest_step(subject: Subject, queries: int) -> Callable[[], None]:
    """Return a step that finds the nearest neighbours."""
    keys, asked = make(subject, queries)

    def step() -> None:
        nearest_keys(asked, keys, subject.neighbours)

    return step


def _asking(subject: Subject, keys: Tensor) -> Callable[[Tensor], Tensor]:
    chunks = chunks_of(subject.labels.to(keys.device), KEYS_ON_GPU if keys.is_cuda else KEYS)
    return lambda queries: log_probabilities(class_log_sums(queries, keys, chunks, subject.num_classes, THETA))


def _retrieval(subject: Subject, rounds: int, device: torch.device) -> str:
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
    peak = product_rate(device)
    note = f"Continuous retrieval does {rate / 1e12:.3g} Tflop/s; a large bfloat16 product {peak / 1e12:.3g}."
    return f"{table(title, list(figures.values()), ratios)}\n\n{note}"


def _neighbours(subject: Subject, rounds: int, device: torch.device) -> str:
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
