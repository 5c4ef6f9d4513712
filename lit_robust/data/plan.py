"""Which samples make up which batch: pure functions of seed, epoch, rank and world size."""

import numpy as np
from numpy.typing import NDArray

from lit_robust.seeds import stream_seed


def training_plan(count: int, batch_size: int, seed: int, epoch: int, rank: int, world: int) -> NDArray[np.int64]:
    """Return the batches of one rank in one training epoch.

    One permutation of all samples is cut into global batches of ``world * batch_size``; each rank takes every
    ``world``-th sample of it. So every rank has the same number of full batches, no sample comes twice, and the union
    over the ranks is the same set of global batches. What is left over at the end is dropped for this epoch.

    Args:
        count: samples in the data set.
        batch_size: samples a rank and batch.
        seed: the data's seed.
        epoch: number of the epoch, from 0.
        rank: this process, 0 to ``world - 1``.
        world: number of processes.

    Returns:
        ``[batches, batch_size]`` sample numbers.
    """
    order = np.random.Generator(np.random.PCG64(stream_seed(seed, "order", epoch))).permutation(count)
    batches = count // (batch_size * world)
    return order[: batches * batch_size * world].reshape(batches, batch_size, world)[:, :, rank]


def evaluation_plan(count: int, batch_size: int, rank: int, world: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the batches of one rank in an evaluation, each sample valid exactly once over all ranks.

    Every rank gets the same number of full batches; what the data do not fill repeats the last sample with a false
    mask.

    Args:
        count: samples in the data set.
        batch_size: samples a rank and batch.
        rank: this process, 0 to ``world - 1``.
        world: number of processes.

    Returns:
        Sample numbers ``[batches, batch_size]`` and their masks of the same shape.
    """
    batches = -(-count // (batch_size * world))
    places = np.arange(batches * batch_size * world).reshape(batches, batch_size, world)[:, :, rank]
    return np.minimum(places, count - 1), places < count
