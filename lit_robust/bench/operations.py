"""Floating-point operations: how many a step takes, and how many a second the machine can do."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lit_robust.bench.subjects import seconds_of


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


def product_rate(device: torch.device) -> float:
    """Return the operations a second of a large bfloat16 matrix product, about the most that a network can reach."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.rand(size, size, device=device).bfloat16() for _ in range(2))
    seconds = [seconds_of(lambda: left @ right, device) for _ in range(6)]
    return 2 * size**3 / median(seconds[1:])  # The first also chooses an algorithm.
