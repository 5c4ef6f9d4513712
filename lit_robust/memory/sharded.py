"""The continuous cache with its keys spread over ranks: each holds a part, and all answer together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from lit_robust.memory.chunks import Chunk
from lit_robust.memory.continuous import class_log_sums


def share_of(count: int, rank: int, world: int) -> slice:
    """Return the rows of ``count`` that belong to a rank; they differ by at most one in number.

    Example:
        >>> [share_of(10, rank, 3) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    return slice(count * rank // world, count * (rank + 1) // world)


def sharded_log_sums(
    queries: Tensor, keys: Tensor, chunks: Sequence[Chunk], num_classes: int, theta: Tensor | float
) -> Tensor:
    """Return `class_log_sums` over the keys of all ranks.

    All ranks must call this together, with as many queries each, and go backward together, too: an evaluation's
    batches are so, an attack that drops broken images is not.

    Args:
        queries: ``[B, d]`` fp32, this rank's own.
        keys: this rank's part of the keys.
        chunks: of that part.
        num_classes: how many classes there are.
        theta: sharpness, above 0.
    """
    sums: Tensor = _ShardedLogSums.apply(queries.float() * theta, keys, chunks, num_classes)
    return sums


class _ShardedLogSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, chunks: Sequence[Chunk], num_classes: int) -> Tensor:
        everyone = _gathered(queries)
        own = class_log_sums(everyone, keys, chunks, num_classes, 1.0)
        highest = own.clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        # Of a class without keys anywhere minus infinity is left, and not the difference of two.
        weights = torch.where(highest.isinf(), 0.0, (own - highest).exp())
        distributed.all_reduce(weights, distributed.ReduceOp.SUM)
        sums = weights.log() + torch.where(highest.isinf(), 0.0, highest)
        ctx.save_for_backward(everyone, keys, sums)
        ctx.chunks, ctx.num_classes = chunks, num_classes
        return sums[_own_rows(len(queries))]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        everyone, keys, sums = ctx.saved_tensors
        outer = _gathered(gradients[0].contiguous())
        with torch.enable_grad():
            queries = everyone.detach().requires_grad_(True)
            own = class_log_sums(queries, keys, ctx.chunks, ctx.num_classes, 1.0)
            # A class's log-sum over all ranks grows with this rank's by this rank's share of the sum.
            shares = torch.where(own.isinf(), 0.0, (own.detach() - sums).exp())
            (inner,) = torch.autograd.grad(own, queries, torch.where(own.isinf(), 0.0, outer * shares))
        distributed.all_reduce(inner, distributed.ReduceOp.SUM)
        return inner[_own_rows(len(gradients[0]))], None, None, None


def _gathered(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _own_rows(count: int) -> slice:
    start = distributed.get_rank() * count
    return slice(start, start + count)
