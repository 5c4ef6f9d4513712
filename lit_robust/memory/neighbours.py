"""Nearest neighbours: only the k most similar keys take part, found exactly."""

from typing import Any

import torch
from torch import Tensor

from lit_robust.core.precision import full_precision
from lit_robust.memory.continuous import QUERIES, products

KEYS = 16384  # Compared at once: with 512 queries 32 MiB.
FEW = 64  # Queries whose neighbours are brought together at once: of 50 keys with 2,048 numbers these are 25 MiB.
GROUP = 32  # Keys of which only the highest is looked at first.


def nearest_keys(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k keys of highest inner product with each query; of equal ones those of lower row.

    Args:
        queries: ``[B, d]`` fp32; no gradient flows through the choice.
        keys: ``[K, d]``, in any floating type.
        k: how many; all where there are fewer.

    Returns:
        Inner products ``[B, k]`` fp32, falling, and rows ``[B, k]`` int64.
    """
    k = min(k, len(keys))
    if not len(queries):
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    with torch.no_grad(), full_precision(queries.device.type):
        blocks = torch.split(queries.float(), QUERIES)
        found = [_nearest(block, keys, k) for block in blocks]
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])


def _nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys), KEYS):
        part = keys[start : start + KEYS]
        found = products(part if part.is_cuda else part.float(), queries)
        maxima = _group_maxima(found)
        if best.shape[1] < k:
            # The k highest lie within the k groups of highest maximum, of equal ones the first: before any other group
            # come k numbers that are as high.
            groups = maxima.sort(dim=0, descending=True, stable=True).indices[:k]
        else:
            # Most groups hold nothing that is nearer than the k nearest so far.
            most = int((maxima > best[:, -1]).sum(0).max())
            if most == 0:
                continue
            groups = maxima.topk(most, dim=0).indices
        values, places = _highest(found, groups.sort(dim=0).values, k)
        best, rows = _merged(best, rows, values, places + start, k)
    return best, rows


def _group_maxima(found: Tensor) -> Tensor:
    """Return the highest of each ``GROUP`` rows of ``[K, B]``."""
    whole = len(found) // GROUP * GROUP
    maxima = found[:whole].view(-1, GROUP, found.shape[1]).amax(1)
    return torch.cat([maxima, found[whole:].amax(0, keepdim=True)]) if whole < len(found) else maxima


def _highest(found: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of each column of ``[K, B]`` within its groups, of equal ones the first, and their rows.

    Args:
        found: ``[K, B]``.
        groups: ``[G, B]``, each column's groups, ascending.
        k: how many; all where there are fewer.
    """
    places = (groups[:, None] * GROUP + torch.arange(GROUP, device=found.device)[:, None]).flatten(0, 1)
    # The last group may be shorter.
    there = places < len(found)
    candidates = found.gather(0, places.clamp(max=len(found) - 1)).masked_fill(~there, -torch.inf).T.contiguous()
    values, order = candidates.topk(min(k, len(found), candidates.shape[1]), dim=1)
    # `topk` takes any of those that equal the last one, so where it had a choice it is asked again.
    last = values[:, -1:]
    tied = ((candidates == last).sum(1) > (values == last).sum(1)).nonzero()[:, 0]
    if len(tied):
        ordered = candidates[tied].sort(dim=1, descending=True, stable=True)
        values[tied], order[tied] = ordered.values[:, : values.shape[1]], ordered.indices[:, : values.shape[1]]
    return values, places.T.gather(1, order)


def _merged(best: Tensor, rows: Tensor, values: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of two lists; the first list's rows are all lower than the second's."""
    by_place = places.argsort(1)
    values = torch.cat([best, values.gather(1, by_place)], 1)
    rows = torch.cat([rows, places.gather(1, by_place)], 1)
    ordered = values.sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k], rows.gather(1, ordered.indices[:, :k])


class _ProductsWithRows(torch.autograd.Function):
    """Queries ``[B, d]`` and rows ``[B, k]`` to inner products ``[B, k]``; holds the keys of a few queries at once."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(keys, rows)
        found = queries.new_empty(rows.shape)
        with full_precision(queries.device.type):
            for start in range(0, len(rows), FEW):
                few = slice(start, start + FEW)
                found[few] = torch.einsum("bd,bkd->bk", queries[few], keys[rows[few]].float())
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        keys, rows = ctx.saved_tensors
        inner = gradients[0].new_empty(len(rows), keys.shape[1])
        with full_precision(inner.device.type):
            for start in range(0, len(rows), FEW):
                few = slice(start, start + FEW)
                inner[few] = torch.einsum("bk,bkd->bd", gradients[0][few], keys[rows[few]].float())
        return inner, None, None


def neighbour_log_sums(
    queries: Tensor, keys: Tensor, labels: Tensor, rows: Tensor, num_classes: int, theta: Tensor | float
) -> Tensor:
    """Return the logarithm of each class's sum of exp(theta q.mu) over given neighbours.

    Differentiable in the queries, the choice of neighbours held fixed, as Sitawarin and Wagner (2020) attack such
    classifiers. A class without a neighbour has no gradient: that is no robustness.

    Args:
        queries: ``[B, d]`` fp32.
        keys: ``[K, d]``, in any floating type.
        labels: int64 ``[K]``.
        rows: int64 ``[B, k]``, each query's neighbours; -1 for none, as approximate searches may give.
        num_classes: how many classes there are.
        theta: sharpness, above 0.

    Returns:
        ``[B, num_classes]`` fp32; minus infinity for a class without neighbours.
    """
    there = rows >= 0
    rows = rows.clamp(min=0)
    found: Tensor = _ProductsWithRows.apply(queries.float(), keys, rows)
    exponents = (theta * found).masked_fill(~there, -torch.inf)
    classes = labels[rows]
    # Each class is shifted by its own highest, so that none is lost beside another that is far more likely.
    highest = exponents.new_full((len(rows), num_classes), -torch.inf)
    highest = highest.scatter_reduce(1, classes, exponents.detach(), "amax")
    shifts = torch.where(there, highest.gather(1, classes), 0.0)
    sums = torch.zeros_like(highest).scatter_add(1, classes, (exponents - shifts).exp())
    # The logarithm of 0 would make the gradients of all other classes NaN.
    logs = torch.where(sums > 0, sums, 1).log() + highest
    return torch.where(sums > 0, logs, -torch.inf)
