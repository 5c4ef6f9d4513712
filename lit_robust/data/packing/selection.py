"""Some images of a set as a set of their own: copied byte by byte, and two parts of one set by a seeded draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import UserError
from lit_robust.core.seeds import stream_seed
from lit_robust.data.loading.splits import TableSplit
from lit_robust.shards.write import ShardWriter

SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}


def write_selection(
    pool: TableSplit, numbers: Sequence[int], folder: Path, split: str, made_by: Mapping[str, Any], shard_size: int
) -> None:
    """Write some images of a pool as shards, byte by byte, under the names they had.

    Args:
        pool: where they are.
        numbers: which, in the order that they get.
        folder: to write.
        split: name of their split.
        made_by: plain values; they stand in the info file, and in the protocol of results.
        shard_size: images a tar.

    Raises:
        UserError: none is left, or the folder has the split already.
    """
    if not len(numbers):
        raise UserError("No image is left: loosen the rules, or take a larger pool.")
    table = pool.table
    known: dict[str, Any] = {"num_classes": pool.num_classes, "class_names": pool.class_names}
    with ShardWriter(folder, split, shard_size, generated=made_by, **known) as writer:
        for number in numbers:
            reader, row = table.find(int(number))
            image = reader.image_bytes(row)
            extension = next(name for begin, name in SIGNATURES.items() if image.startswith(begin))
            label = {"cls": b"%d" % table.label[number]} if table.label[number] >= 0 else {}
            writer.write(table.key(int(number)), {extension: image, **label})


def two_parts(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of a fraction of the images of each class, drawn by a seed, and of the others; both ascend.

    Args:
        labels: ``[N]``.
        fraction: of each class, rounded to whole images, but at least one and not all.
        seed: of the draw of each class, which does not depend on the other classes.

    Raises:
        UserError: the fraction is not between 0 and 1, or a class has a single image.
    """
    if not 0 < fraction < 1:
        raise UserError(f"fraction is {fraction}: give one between 0 and 1, such as 0.8.")
    first = []
    for one in np.unique(labels):
        own = np.flatnonzero(labels == one)
        if len(own) < 2:
            raise UserError(f"Class {one} has one image, which cannot be in both parts: leave the class out.")
        random = np.random.default_rng(stream_seed(seed, "two parts of a set", int(one) + 1))
        count = min(max(round(fraction * len(own)), 1), len(own) - 1)
        first.append(random.permutation(own)[:count])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)
