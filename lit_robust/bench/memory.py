"""The peak memory of some work, weighed in a process of its own."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")


def peak_memory(build: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> float:
    """Return the peak memory of a step, of what it works on and of what it leaves for the next, in MiB.

    A fresh process builds the step and takes it twice; the second time the optimiser's state is there, too.

    Args:
        build: gives the step; a function of a module, which the other process imports.
        arguments: of ``build``.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(weigh, (build, arguments)))


def extra_memory(build: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> float:
    """Return what a step holds at its peak beyond what it was built with, in MiB, in a fresh process.

    Args:
        build: gives the step; a function of a module, which the other process imports.
        arguments: of ``build``.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(weigh_step, (build, arguments)))


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
    resident = _resident("VmRSS")
    step()
    return _resident("VmHWM") - resident


def weigh(build: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> float:
    """Return what building a step and taking it twice adds to this process at its peak, in MiB.

    On a GPU that is what torch allocated. On a CPU it is resident memory, work space of the convolutions included, less
    what the process held before: Python with torch, the same for every step, would bring all ratios nearer to 1.
    """
    before = 0.0 if torch.cuda.is_available() else _resident("VmRSS")
    step = build(*arguments)
    for _ in range(2):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # Not `getrusage`: at exec a new process's record there starts from the peak of the one that made it.
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """Return a line of the kernel's account of this process, in MiB."""
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 2**10
