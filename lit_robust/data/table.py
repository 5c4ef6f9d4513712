"""The samples of a set: which there are, where their bytes come from, and what is known of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.int64]
NO_CLASS = -1


class Reader(Protocol):
    """Gives the encoded image of any row."""

    def image_bytes(self, number: int) -> bytes:
        """Return the encoded image of row ``number``."""

    def key(self, number: int) -> str:
        """Return the name of row ``number``."""

    def name(self, number: int) -> str:
        """Return what to call row ``number`` in a message."""


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Samples that can be read in any order.

    Attributes:
        readers: where the bytes come from.
        reader: ``[N]`` the place of each sample's reader in ``readers``; None where there is one reader.
        row: ``[N]`` the sample's row in its reader; None for the rows in their order.
        label: ``[N]`` class, or -1 where a sample has none.
        group: ``[N]`` the sample's cell, severity or variant, where the set has such.
        texture: ``[N]`` category of the texture, for cue-conflict images.
        lengths: samples in each shard, for an order that keeps to shards; they sum to N.
    """

    readers: Sequence[Reader]
    label: Column
    lengths: Column
    reader: NDArray[np.uint16] | None = None
    row: Column | None = None
    group: Column | None = None
    texture: Column | None = None

    def __len__(self) -> int:
        return len(self.label)

    def find(self, number: int) -> tuple[Reader, int]:
        """Return the reader of sample ``number``, and its row there."""
        reader = self.readers[0 if self.reader is None else int(self.reader[number])]
        return reader, number if self.row is None else int(self.row[number])

    def key(self, number: int) -> str:
        """Return the name of sample ``number``."""
        reader, row = self.find(number)
        return reader.key(row)

    def relabel(self, label: Column) -> "SampleTable":
        """Return the same samples with other labels."""
        return replace(self, label=label)

    def select(self, kept: Column) -> "SampleTable":
        """Return the samples of the given numbers, which must ascend."""
        shard = np.searchsorted(np.cumsum(self.lengths), kept, side="right")
        return replace(
            self,
            label=self.label[kept],
            lengths=np.bincount(shard, minlength=len(self.lengths)),
            reader=None if self.reader is None else self.reader[kept],
            row=kept.astype(np.int64) if self.row is None else self.row[kept],
            group=None if self.group is None else self.group[kept],
            texture=None if self.texture is None else self.texture[kept],
        )


def join(tables: Sequence[SampleTable], groups: Sequence[int] | None = None) -> SampleTable:
    """Return the samples of several sets as one, in order.

    Args:
        tables: the sets; without groups and textures of their own.
        groups: the group of each table's samples; None for a set without groups.
    """
    readers = [reader for table in tables for reader in table.readers]
    first = np.cumsum([0, *(len(table.readers) for table in tables)])
    places = [
        np.full(len(table), start, np.uint16) if table.reader is None else table.reader + np.uint16(start)
        for table, start in zip(tables, first[:-1], strict=True)
    ]
    rows = [np.arange(len(table)) if table.row is None else table.row for table in tables]
    sizes = [len(table) for table in tables]
    return SampleTable(
        readers=readers,
        label=np.concatenate([table.label for table in tables]),
        lengths=np.concatenate([table.lengths for table in tables]),
        reader=np.concatenate(places),
        row=np.concatenate(rows),
        group=None if groups is None else np.repeat(np.array(groups, dtype=np.int64), sizes),
    )
