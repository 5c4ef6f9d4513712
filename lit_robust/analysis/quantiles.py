"""Exact upper quantiles of every unit's activations, in two passes over the images and little memory.

The first pass counts values by their leading bits, which for floats are their order; the second keeps the values that
share the leading bits of the quantile, and takes it from them. How many these are is known before the second pass.
"""

import torch
from torch import Tensor

BITS = 12  # Leading bits that are counted by: sign, exponent and three of the mantissa, so 1/8 of a value apart.
BINS = 1 << BITS


def ordered(values: Tensor) -> Tensor:
    """Return int64 codes of float32 values from 0, which are ordered as the values are; -0 is 0."""
    bits = (values.float() + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits) + (1 << 31)


class UpperQuantile:
    """The value of each unit that a share of its activations exceeds: the (k+1)-th largest of n, k = floor(share n).

    At most k values are above it; fewer where it comes several times. Batches may come in any order, and those of other
    processes or machines may be added: the state is counts, and values of known number.

    Args:
        units: how many.
        share: of the activations above the threshold, in (0, 1), such as .005.
    """

    def __init__(self, units: int, share: float) -> None:
        self.share = share
        self.counts = torch.zeros(units, BINS, dtype=torch.int64)
        self.total = 0
        self._kept: list[tuple[Tensor, Tensor]] = []

    def count(self, values: Tensor) -> None:
        """Take ``[units, n]`` values of the first pass."""
        units, number = values.shape
        codes = ordered(values.cpu()) >> (32 - BITS)
        codes += torch.arange(units)[:, None] * BINS
        self.counts += torch.bincount(codes.flatten(), minlength=units * BINS).view(units, BINS)
        self.total += number

    def settle(self) -> Tensor:
        """End the first pass: return the bin ``[units]`` that each quantile lies in."""
        self.above = int(self.share * self.total)
        from_top = self.counts.flip(1).cumsum(1).flip(1)
        self.bins = (from_top > self.above).sum(1) - 1
        beyond = torch.cat([from_top, torch.zeros(len(from_top), 1, dtype=torch.int64)], 1)
        self.rank = self.above - beyond.gather(1, self.bins[:, None] + 1)[:, 0]
        return self.bins

    def keep(self, values: Tensor) -> None:
        """Take ``[units, n]`` values of the second pass: the same ones, in any order."""
        values = values.cpu().float()
        unit, place = ((ordered(values) >> (32 - BITS)) == self.bins[:, None]).nonzero(as_tuple=True)
        self._kept.append((unit, values[unit, place]))

    def merge(self, other: "UpperQuantile") -> None:
        """Add what another has counted or kept of other images."""
        if self._kept or other._kept:
            self._kept += other._kept
        else:
            self.counts += other.counts
            self.total += other.total

    def thresholds(self) -> Tensor:
        """End the second pass: return the quantile of each unit, float32 ``[units]``."""
        unit, value = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        # By unit, and within it from the largest value down.
        order = value.argsort(descending=True)
        order = order[unit[order].argsort(stable=True)]
        first = torch.searchsorted(unit[order].contiguous(), torch.arange(len(self.bins)))
        return value[order][first + self.rank]
