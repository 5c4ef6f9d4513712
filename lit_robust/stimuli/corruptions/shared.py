"""What all corruptions share: random maps, one generator an image; the way back to bytes; linear filters.

A corruption is a function of its name in this package: images ``[B, 3, H, W]`` uint8, a severity from 1 to 5 and the
images' random numbers to images of the same shape and type.

A matrix product or a Fourier transform may round differently for another batch size, and truncation makes a whole grey
level of that. So both run image by image, always at one shape.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

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


Border = Literal["nearest", "reflect"]
Matrix = NDArray[np.float64]

BAND = 56


def gaussian_weights(deviation: float, radius: int) -> Matrix:
    """Return ``[2 · radius + 1]`` weights of a Gaussian that sum to 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    return np.asarray(weights / weights.sum())


@lru_cache(maxsize=64)
def gaussian_matrix(size: int, deviation: float, truncate: float, border: Border, device: torch.device) -> Tensor:
    """Return ``[size, size]`` float32 whose product with a column of pixels is that column blurred.

    Args:
        size: pixels along the axis.
        deviation: standard deviation in pixels.
        truncate: the kernel ends at this many deviations.
        border: what lies outside, in SciPy's words: ``nearest`` (aaa|abc) or ``reflect`` (cba|abc).
        device: where the matrix shall lie.
    """
    radius = int(truncate * deviation + 0.5)
    rows = np.arange(size)[:, None]
    columns = rows + np.arange(-radius, radius + 1)[None, :]
    if border == "nearest":
        columns = columns.clip(0, size - 1)
    else:
        columns = columns % (2 * size)
        columns = np.minimum(columns, 2 * size - 1 - columns)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.broadcast_to(rows, columns.shape), columns), gaussian_weights(deviation, radius)[None, :])
    return torch.from_numpy(matrix.astype(np.float32)).to(device)


def gaussian(images: Tensor, deviation: float, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """Blur as ``skimage.filters.gaussian`` does.

    Args:
        images: ``[B, C, H, W]`` float32.
        deviation: standard deviation in pixels.
        truncate: the kernel ends at this many deviations.
        border: what lies outside.
    """
    height, width = images.shape[-2:]
    radius = int(truncate * deviation + 0.5)
    down = gaussian_matrix(height, deviation, truncate, border, images.device)
    across = gaussian_matrix(width, deviation, truncate, border, images.device).t()
    out = torch.empty_like(images)
    half_done = torch.empty_like(images[0])
    for source, target in zip(images, out, strict=True):
        for here, near in _bands(height, radius):
            half_done[:, here] = torch.matmul(down[here, near], source[:, near])
        for here, near in _bands(width, radius):
            target[:, :, here] = torch.matmul(half_done[:, :, near], across[near, here])
    return out


def _bands(size: int, radius: int) -> list[tuple[slice, slice]]:
    """Cut an axis into bands, each with the slightly larger one that it depends on; beyond lie only zeros."""
    starts = range(0, size, BAND)
    return [
        (slice(start, min(start + BAND, size)), slice(max(0, start - radius), min(size, start + BAND + radius)))
        for start in starts
    ]


def fast_length(least: int) -> int:
    """Return the smallest length from ``least`` on that has no prime factor above 5, where Fourier transforms are fast.

    >>> fast_length(244)
    250
    """
    length = least
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Filter with a symmetric kernel; outside the image is its mirror image without the edge (OpenCV's default).

    Args:
        images: ``[B, C, H, W]`` float32, H and W larger than half the kernel.
        kernel: ``[K, K]`` float32, K odd.
    """
    height, width = images.shape[-2:]
    radius = kernel.shape[-1] // 2
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    size = fast_length(padded.shape[-2]), fast_length(padded.shape[-1])
    response = torch.fft.rfft2(kernel, s=size)
    out = torch.empty_like(images)
    for source, target in zip(padded, out, strict=True):
        circular = torch.fft.irfft2(torch.fft.rfft2(source, s=size).mul_(response), s=size)
        target.copy_(circular[..., 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width])
    return out
