"""Random maps, one generator an image, and the way back from floats to bytes."""

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-3


class Draws:
    """Random maps for a batch, in which image ``b`` draws from a generator of its own.

    What an image gets depends on its seed and on the draws before, never on its neighbours. The numbers of a CPU and of
    a GPU generator differ.

    Args:
        seeds: one an image, each at least 0 and below 2**63.
        device: where the maps shall lie.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._device = device
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(len(self._generators), *shape, dtype=dtype, device=self._device)

    def normal(self, shape: Sequence[int], mean: float, deviation: float) -> Tensor:
        """Return ``[B, *shape]`` float32, normally distributed."""
        maps = self._empty(shape, torch.float32)
        for one, generator in zip(maps, self._generators, strict=True):
            one.normal_(mean, deviation, generator=generator)
        return maps

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Tensor:
        """Return ``[B, *shape]`` float32, evenly spread over ``low`` to ``high``."""
        maps = self._empty(shape, torch.float32)
        for one, generator in zip(maps, self._generators, strict=True):
            one.uniform_(low, high, generator=generator)
        return maps

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """Return ``[B, *shape]`` int32, each of 0 to ``high - 1`` equally likely."""
        maps = self._empty(shape, torch.int32)
        for one, generator in zip(maps, self._generators, strict=True):
            one.random_(0, high, generator=generator)
        return maps


def to_bytes(values: Tensor) -> Tensor:
    """Return floats of the range 0 to 255 as uint8, clipped and then truncated as ``numpy.uint8`` does it.

    Values less than ``ROUNDING`` below a whole number count as that number: the published code computes in float64, and
    float32 must not darken an even surface by one. ``values`` is overwritten.
    """
    # By way of int16, because torch turns floats into bytes one by one.
    return values.add_(ROUNDING).clamp_(0, 255).to(torch.int16).to(torch.uint8)
