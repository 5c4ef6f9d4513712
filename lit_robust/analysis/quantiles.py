"""Exact upper quantiles of every unit's activations, in two passes over the images and little memory.

The first pass counts values by their leading bits, which for floats are their order; the second keeps the values that
share the leading bits of the quantile, and takes it from them. How many these are is known before the second pass.
"""

import torch
from torch import Tensor

BITS = 12  # Leading bits that are counted by: sign, exponent and three of the mantissa, so 1/8 of a value apart.
BINS = 1 << BITS
# A float's bits are its sign and its size: codes of negative values, which come first, fall as the values rise.
RISING = torch.cat([torch.arange(BINS // 2 - 1, -1, -1), torch.arange(BINS // 2, BINS)])
ZEROS = (BINS // 2 - 1, BINS // 2)  # Places in RISING of -0 and 0, and of what is nearer to 0 than 2^-129.


def leading(maps: Tensor) -> Tensor:
    """Return int32 codes of float32 values: the place in ``RISING`` of a value's code does not fall as values rise."""
    return (maps.contiguous().view(torch.int32) >> (32 - BITS)).add_(BINS // 2)


class UpperQuantile:
    """The value of each unit that a share of its activations exceeds: the (k+1)-th largest of n, k = floor(share n).

    At most k values are above it; fewer where it comes several times. Batches may come in any order, and those of other
    processes or machines may be added: the state is counts, and values of known number. A quantile nearer to 0 than
    2^-129 is 0.

    Args:
        units: how many.
        share: of the activations above the threshold, in (0, 1), such as .005.
    """

    def __init__(self, units: int, share: float) -> None:
        self.share = share
        self.counts = torch.zeros(units, BINS, dtype=torch.int64)
        self.total = 0
        self.bins: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def count(self, maps: Tensor) -> None:
        """Take float32 ``[B, units, ...]`` of the first pass."""
        units = maps.shape[1]
        codes = leading(maps.flatten(2))
        codes += torch.arange(units, dtype=torch.int32, device=maps.device)[:, None] * BINS
        self.counts += torch.bincount(codes.flatten(), minlength=units * BINS).view(units, BINS).cpu()
        self.total += maps.numel() // units

    def settle(self) -> Tensor:
        """End the first pass: return the place ``[units]`` in ``RISING`` of each quantile's code."""
        above = int(self.share * self.total)
        negative, positive = self.counts.chunk(2, 1)
        from_top = torch.cat([positive.flip(1), negative], 1).cumsum(1)
        # Places, from the top, that lie above the quantile's.
        passed = torch.searchsorted(from_top, torch.full((len(from_top), 1), above), right=True)[:, 0]
        beyond = from_top.gather(1, (passed - 1).clamp(min=0)[:, None])[:, 0]
        self.rank = above - torch.where(passed > 0, beyond, 0)
        self.bins = BINS - 1 - passed
        return self.bins

    @property
    def _settled(self) -> Tensor:
        assert self.bins is not None, "the first pass has not ended"
        return self.bins

    def keep(self, maps: Tensor) -> None:
        """Take float32 ``[B, units, ...]`` of the second pass: the same ones, in any order."""
        codes = RISING[self._settled].int()
        codes[torch.isin(self._settled, torch.tensor(ZEROS))] = BINS  # No value's: it is known, and may come often.
        values = maps.flatten(2)
        found = (leading(values) == codes.to(maps.device)[:, None]).nonzero(as_tuple=True)
        self._kept.append((found[1].cpu(), values[found].cpu()))

    def merge(self, other: "UpperQuantile") -> None:
        """Add what another has counted or kept of other images."""
        if self.bins is None:
            self.counts += other.counts
            self.total += other.total
        else:
            self._kept += other._kept

    def thresholds(self) -> Tensor:
        """End the second pass: return the quantile of each unit, float32 ``[units]``."""
        unit, value = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        # By unit, and within it from the largest value down.
        order = value.argsort(descending=True)
        order = order[unit[order].argsort(stable=True)]
        first = torch.searchsorted(unit[order].contiguous(), torch.arange(len(self._settled)))
        zero = torch.isin(self._settled, torch.tensor(ZEROS))
        found = torch.zeros(len(zero))
        found[~zero] = value[order][(first + self.rank)[~zero]]
        return found
