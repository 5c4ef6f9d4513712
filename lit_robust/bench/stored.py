"""`lit-robust bench stored-memory`: a memory of ImageNet's size, built on disk and asked from there."""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_robust.bench.measuring import Figure, machine, status_mib, table
from lit_robust.memory import Manifest, Memory, open_memory
from lit_robust.memory.build import begin_memory, resume_memory
from lit_robust.memory.classifier import ContinuousLayer, NearestLayer, Retrieval

BATCH = 4096  # Keys that come at once.


def bench_stored_memory(count: int, dimensions: int, queries: int, neighbours: int, folder: Path) -> str:
    """Build a memory of fp16 keys below ``folder``, open and ask it, and return the table; the memory is removed.

    Every step is taken once: it takes a minute, and reads or writes gigabytes.

    Args:
        count: keys, of as many classes as 1,000, evenly.
        dimensions: of a key.
        queries: asked at once.
        neighbours: k of the nearest.
        folder: on the disk that is measured.
    """
    figures: list[Figure] = []
    size = count * dimensions * 2

    def timed(name: str, work: Callable[[], object]) -> object:
        begin = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - begin
        figures.append(Figure(name, seconds, "s", seconds, seconds))
        return found

    with tempfile.TemporaryDirectory(dir=folder, prefix="lit-robust-bench-") as place:
        memory_folder = Path(place) / "memory"
        timed("building it of keys that are ready", partial(build, memory_folder, count, dimensions))
        memory = timed("opening it, every digest held against its file", partial(open_memory, memory_folder))
        assert isinstance(memory, Memory)
        asked = torch.randn(queries, dimensions, generator=torch.Generator().manual_seed(0))
        asked = asked / torch.linalg.vector_norm(asked, dim=1, keepdim=True)
        before = status_mib("RssAnon")
        for name, layer in layers(memory, neighbours).items():
            timed(f"{name}, {queries} queries", lambda layer=layer: _answer(layer, asked))  # type: ignore[misc]
        held, peak = status_mib("RssAnon") - before, status_mib("VmHWM")
    title = f"{count:,} keys of {dimensions} dimensions, float16, {size / 1e9:.2f} GB on disk"
    return "\n".join(
        [
            machine(("torch", "numpy")),
            "",
            table(title, figures, {}),
            "",
            f"After the answers the process holds {held:.0f} MiB more memory of its own than before. Its peak is "
            f"{peak:.0f} MiB, the keys' pages that the system keeps in memory included, which it gives up for others. "
            f"The machine has {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB.",
        ]
    )


def build(folder: Path, count: int, dimensions: int) -> None:
    """Build a memory of random keys, images sorted by class."""
    labels = np.arange(count) * 1000 // count
    manifest = Manifest({}, "", "", {}, count, dimensions, 1000, "float16", "bench")
    begin_memory(folder, manifest, labels)
    builder = resume_memory(folder, manifest, labels)
    keys = np.random.default_rng(0).standard_normal((BATCH, dimensions), np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    norms = np.ones(BATCH, np.float32)
    for turn, start in enumerate(tqdm(range(0, count, BATCH), "writing keys", leave=False)):
        numbers = np.arange(start, min(start + BATCH, count))
        rows = np.roll(keys, turn, axis=1)[: len(numbers)]  # Other keys in every batch.
        builder.write(numbers, rows, norms[: len(numbers)])
    builder.finish()


def layers(memory: Memory, neighbours: int) -> dict[str, ContinuousLayer | NearestLayer]:
    """Return what answers, both with the keys on disk."""
    device = torch.device("cpu")
    return {
        "asking all keys": ContinuousLayer(memory, Retrieval("continuous", 50.0), device),
        f"asking the {neighbours} nearest, found exactly": NearestLayer(
            memory, Retrieval("nearest", 50.0, k=neighbours), device
        ),
    }


def _answer(layer: ContinuousLayer | NearestLayer, queries: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = layer(queries)
    return found
