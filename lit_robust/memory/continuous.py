"""The continuous cache: every key takes part, exactly, and queries times keys are never held at once.

The class probabilities of Orhan (2018) and of Orhan and Lake (2019), equations 1 and 2: p(c) is proportional to the sum
of exp(theta q.mu) over the keys mu of class c. Here each class's sum is kept as its logarithm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision

QUERIES = 512  # In one go; with a chunk's 4,096 keys their similarities are 8 MiB.
FLOOR = -1e4
"""The log-probability of a class that has none: exactly 0 as fp32 probability, and still a number."""


CHUNK_KEYS = 4096  # Of 2,048 numbers these are 32 MiB in fp32; the similarities of 256 queries to them 4 MiB.
CHUNK_KEYS_ON_GPU = 16384  # Wide enough for a matrix product to fill the device.
CHUNK_CLASSES = 64  # More would make the product that sums over classes matter next to the one of the similarities.


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of class-sorted keys.

    Attributes:
        rows: which rows.
        first: the class of the first of them.
        last: the class of the last of them.
        local: int64 ``[rows]``, each row's class less ``first``.
    """

    rows: slice
    first: int
    last: int
    local: Tensor

    @property
    def classes(self) -> slice:
        """The classes from the first to the last, those without keys included."""
        return slice(self.first, self.last + 1)

    def indicator(self, like: Tensor) -> Tensor:
        """Return ``[rows, classes]``, 1 where a row is of a class, in the type and on the device of ``like``."""
        numbers = torch.arange(self.last + 1 - self.first, device=self.local.device)
        return (self.local[:, None] == numbers).to(like)


def chunks_of(labels: Tensor, keys: int = CHUNK_KEYS, classes: int = CHUNK_CLASSES) -> list[Chunk]:
    """Cut class-sorted keys into chunks.

    Args:
        labels: int64 ``[K]``, ascending.
        keys: the most rows of a chunk.
        classes: the most classes a chunk reaches over.

    Raises:
        UserError: the labels do not ascend.
    """
    if bool((labels[1:] < labels[:-1]).any()):
        raise UserError("The labels of a memory must ascend, so that a class is a stretch of rows: sort its rows.")
    return list(_cut(labels, keys, classes))


def _cut(labels: Tensor, keys: int, classes: int) -> Iterator[Chunk]:
    start, count = 0, len(labels)
    while start < count:
        first = int(labels[start])
        within = labels[start : start + keys]
        end = start + int((within < first + classes).sum())
        yield Chunk(slice(start, end), first, int(labels[end - 1]), labels[start:end] - first)
        start = end


def class_log_sums(
    queries: Tensor, keys: Tensor, chunks: Sequence[Chunk], num_classes: int, theta: Tensor | float
) -> Tensor:
    """Return the logarithm of each class's sum of exp(theta q.mu).

    Computed in fp32 under autocast, too. Each class is shifted by its own largest similarity, so that nothing overflows
    or is lost at any theta; on a GPU by that of its chunk, where a class e^87 times less likely than its neighbours
    counts as without keys, and has no gradient. The backward pass computes the similarities again; it holds the
    gradient of the queries alone, and may not be differentiated itself.

    Args:
        queries: ``[B, d]`` fp32.
        keys: ``[K, d]``, in any floating type; in 16 bits the products are still summed and returned in fp32, on a GPU
            of queries that were rounded to the keys' type.
        chunks: of the keys, which are sorted by class.
        num_classes: how many classes there are.
        theta: inverse temperature, above 0.

    Returns:
        ``[B, num_classes]`` fp32; minus infinity for a class without keys.
    """
    sums: Tensor = _ClassLogSums.apply(queries.float() * theta, keys, chunks, num_classes)
    return sums


def class_log_sums_at(
    queries: Tensor, keys: Tensor, chunks: Sequence[Chunk], num_classes: int, thetas: Sequence[float]
) -> Tensor:
    """Return `class_log_sums` at several thetas, ``[len(thetas), B, num_classes]``, with each similarity taken once.

    There is no gradient.
    """
    with torch.no_grad(), full_precision(queries.device.type):
        sums = queries.new_full((len(thetas), num_classes, len(queries)), -torch.inf, dtype=torch.float32)
        for block, chunk, part in _pieces(queries.float(), keys, chunks):
            cosines = products(part, queries[block].float())
            for place, theta in enumerate(thetas):
                _add_chunk(sums[place, chunk.classes, block], cosines * theta, chunk)
    return sums.transpose(1, 2)


def log_probabilities(log_sums: Tensor) -> Tensor:
    """Return the log-probability of each class, ``[B, num_classes]``, at least ``FLOOR``, from its log-sums."""
    return (log_sums - log_sums.logsumexp(1, keepdim=True)).clamp(min=FLOOR)


class _ClassLogSums(torch.autograd.Function):
    """Takes queries already multiplied by theta, so that a similarity is an exponent.

    Inside, a row is a key or a class and a column is a query: so sums over keys run along whole rows.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, chunks: Sequence[Chunk], num_classes: int) -> Tensor:
        sums = queries.new_full((num_classes, len(queries)), -torch.inf)
        with full_precision(queries.device.type):
            for block, chunk, part in _pieces(queries, keys, chunks):
                _add_chunk(sums[chunk.classes, block], products(part, queries[block]), chunk)
        ctx.save_for_backward(queries, keys, sums)
        ctx.chunks = chunks
        return sums.T.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        queries, keys, sums = ctx.saved_tensors
        outer = gradients[0].T.contiguous()
        inner = torch.zeros_like(queries)
        # Autocast may be on again, for an attack goes backward within it.
        with full_precision(queries.device.type):
            for block, chunk, part in _pieces(queries, keys, ctx.chunks):
                # The derivative of a class's log-sum is the mean of its keys, each weighted by its share of the sum.
                shares = products(part, queries[block])
                whole = sums[chunk.classes, block]
                # A class that was lost next to its neighbours has no sum to have a share of.
                whole = whole.masked_fill(whole == -torch.inf, torch.inf)
                shares.sub_(whole.index_select(0, chunk.local)).exp_()
                shares.mul_(outer[chunk.classes, block].index_select(0, chunk.local))
                add_product(inner[block], shares, part)
        return inner, None, None, None


def _add_chunk(total: Tensor, exponents: Tensor, chunk: Chunk) -> None:
    """Add a chunk's keys to the classes' log-sums ``[classes, B]``, in place; uses up the exponents ``[rows, B]``."""
    highest = _highest(exponents, chunk)
    weights = exponents.sub_(highest.index_select(0, chunk.local)).exp_()
    found = (chunk.indicator(weights).T @ weights).log_().add_(highest)
    # A class may reach over several chunks.
    total.copy_(torch.logaddexp(total, found))


def _highest(exponents: Tensor, chunk: Chunk) -> Tensor:
    """Return what each class's exponents are shifted by, ``[classes, B]``: its highest, or on a GPU the chunk's."""
    classes = chunk.last + 1 - chunk.first
    if exponents.is_cuda:
        # All of a class's rows would meet in one atomic operation.
        return exponents.amax(0, keepdim=True).expand(classes, -1)
    highest = exponents.new_full((classes, exponents.shape[1]), -torch.inf)
    return highest.scatter_reduce_(0, chunk.local[:, None].expand_as(exponents), exponents, "amax")


def _pieces(queries: Tensor, keys: Tensor, chunks: Sequence[Chunk]) -> Iterator[tuple[slice, Chunk, Tensor]]:
    """Give every block of queries with every chunk of keys; each chunk is brought near once."""
    blocks = [slice(start, start + QUERIES) for start in range(0, len(queries), QUERIES)]
    for chunk in chunks:
        part = keys[chunk.rows]
        if not part.is_cuda:
            part = part.float()  # A processor's 16-bit products would round their sums, too.
        for block in blocks:
            yield block, chunk, part


def products(keys: Tensor, queries: Tensor) -> Tensor:
    """Return the inner products ``[K, B]`` in fp32 of keys ``[K, d]`` of any type and queries ``[B, d]``."""
    if keys.dtype != torch.float32:
        return torch.mm(keys, queries.to(keys.dtype).T, out_dtype=torch.float32)
    if keys.is_cuda or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return keys @ queries.T
    # The same product as a convolution over an image of one pixel a key: oneDNN does it, which on AMD's processors is a
    # sixth faster than the MKL behind `@`, and as exact.
    image = keys[None, :, None].permute(0, 3, 1, 2)
    return F.conv2d(image, queries[:, :, None, None]).permute(0, 2, 3, 1)[0, :, 0]


def add_product(total: Tensor, weights: Tensor, keys: Tensor) -> None:
    """Add to ``total``, ``[B, d]``, the sums of keys ``[K, d]`` weighted by ``[K, B]``, in place and in fp32."""
    if keys.dtype == torch.float32:
        total.addmm_(weights.T, keys)
    else:
        total.add_(torch.mm(weights.to(keys.dtype).T, keys, out_dtype=torch.float32))


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
        theta: inverse temperature, above 0.
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
