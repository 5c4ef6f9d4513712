"""What a loader delivers on more cores than are at hand: measured costs of a batch, put into a queue that is simulated.

The queue is torch's: each process makes every n-th batch, is asked for two ahead, and the main process takes them in
order. What it leaves out: memory bandwidth, a disk slower than the cores, and what else the main process does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import mean

from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.samples import Samples

CORES = (1, 2, 4, 8, 16, 32, 64)
AHEAD = 2
"""Batches that torch asks a process for beforehand."""
SIMULATED = 4000
"""Batches of each simulation."""

GPU, GPUS = 2600, 8
"""Images a second that an A100 trains a ResNet-50 on, of which a node has eight (huggingface/pytorch-image-models,
issue 1491: bf16, channels last)."""
MADRY = 17 / 3
"""How many standard steps one of Madry's is: 7 times a forward and a backward pass to the image, then a step."""


@dataclass(frozen=True)
class Costs:
    """Seconds of processor time.

    Attributes:
        made: of each measured batch in the process that makes it; simulations take them again and again, in turn.
        taken: of a batch in the main process.
        batch: images a batch.
    """

    made: Sequence[float]
    taken: float
    batch: int


def measure_costs(samples: Samples, loader: PlannedLoader) -> Costs:
    """Measure what batches cost both sides, apart from the first.

    Args:
        samples: what is loaded; its batches are made in this process.
        loader: of the same, whose one process makes them while this one takes them.
    """
    made = []
    sizes = []
    for request in loader.sampler:
        begin = time.thread_time()
        sizes.append(len(samples[request]))
        made.append(time.thread_time() - begin)
    received = iter(loader)
    next(received)
    begin = time.process_time()
    count = sum(1 for _ in received)
    return Costs(made[1:], (time.process_time() - begin) / count, sizes[0])


def simulate(costs: Costs, processes: int, batches: int = SIMULATED) -> float:
    """Return the images a second that the main process receives when it does nothing else.

    Args:
        costs: of a batch.
        processes: each on a core of its own, besides the main one's.
        batches: how many.
    """
    made, taken = [0.0] * batches, [0.0] * batches
    for number in range(batches):
        # A process begins a batch when its last one is made, and when it has been asked for it.
        last = made[number - processes] if number >= processes else 0.0
        asked = taken[number - AHEAD * processes] if number >= AHEAD * processes else 0.0
        made[number] = max(last, asked) + costs.made[number % len(costs.made)]
        before = taken[number - 1] if number else 0.0
        taken[number] = max(before, made[number]) + costs.taken
    return batches * costs.batch / taken[-1]


def scaling_table(costs: Costs) -> str:
    """Return the simulated rates, and how many cores a node of GPUs needs by them."""
    image = mean(costs.made) / costs.batch
    rates = {cores: simulate(costs, cores) for cores in CORES}
    lines = [
        f"### One loader on more cores, simulated: an image costs {1e3 * image:.3g} ms of a core, a batch of "
        f"{costs.batch} {1e3 * costs.taken:.3g} ms of the main process",
        "",
        "| cores | images/s | of so many times one core |",
        "| ---: | ---: | ---: |",
        *(f"| {cores} | {rate:,.0f} | {100 * rate / (cores * rates[1]):.0f} % |" for cores, rate in rates.items()),
    ]
    needs = {"a standard training": float(GPU), "Madry's of 7 steps": GPU / MADRY}
    said = [
        f"{name} takes {GPUS * rate:,.0f} images/s and {GPUS * ceil(rate / rates[1])} loading processes"
        for name, rate in needs.items()
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"A node of {GPUS} GPUs, each with a loader of its own and each assumed to train a ResNet-50 on {GPU:,} "
            f"images/s, as an A100 does: {'; '.join(said)}. Assumed: a core for each process and one more a GPU, "
            "files in memory or on a disk that keeps up, no other limit of memory or bus.",
        ]
    )
