"""Timing contenders in turn, and the table of what came out."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median

import torch
from tqdm import tqdm


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
    """Return one line that says what was measured on: a GPU where there is one, processor, cores, threads, versions."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    cores = len(os.sched_getaffinity(0))
    threads = torch.get_num_threads()
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    return f"{gpu}{_processor()}, {cores} cores, {threads} threads; Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no file, but the kernel's word
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
