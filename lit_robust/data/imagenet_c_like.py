"""Validation images corrupted as they are loaded: like ImageNet-C, for sets that have no such files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import stream_seed
from lit_robust.data.cells import CELLS, chosen_cells
from lit_robust.data.imagenet import check_classes
from lit_robust.data.loader import PlannedLoader
from lit_robust.data.module import ShardDataModule
from lit_robust.data.plan import Request
from lit_robust.data.samples import EvaluationSamples, OnError
from lit_robust.data.settings import check_given
from lit_robust.data.shard_splits import open_table
from lit_robust.data.single_set import check_stage
from lit_robust.data.source import Encoded, Source
from lit_robust.data.split import Reading, TableSplit
from lit_robust.data.table import SampleTable
from lit_robust.data.transforms import EvaluationCrop
from lit_robust.shards.address import is_url, shown
from lit_robust.stimuli.corruptions import CORRUPTIONS, SEVERITIES, FrostPictures, corrupt

NAME = "imagenet-c-like"


class CorruptedSamples(EvaluationSamples):
    """Samples cropped and then corrupted; sample ``n`` is image ``n // C`` in the ``n % C``-th of ``C`` cells.

    Args:
        source: gives the encoded images; the cells of one image follow one another.
        crop: comes before the corruption.
        cells: names, ``<corruption>/<severity>``.
        seed: of all draws; each image and cell has a stream of its own.
        frost: pictures for the corruption ``frost``; None draws them.
        on_error: what to do about an image that cannot be decoded.
    """

    def __init__(
        self,
        source: Source,
        crop: EvaluationCrop,
        cells: Sequence[str],
        seed: int,
        frost: FrostPictures | None,
        on_error: OnError = "error",
    ) -> None:
        super().__init__(source, crop, on_error)
        self.cells = list(cells)
        self.seed = seed
        self.frost = frost
        self._kept: tuple[int, Tensor | None] | None = None

    def image(self, encoded: Encoded, place: int, request: Request) -> Tensor | None:
        """Return uint8 ``[3, H, W]`` of the sample in ``place`` of a batch; None where it is broken and skipped."""
        number, cell = divmod(int(request.numbers[place]), len(self.cells))
        # A batch holds the cells of one image side by side: it is decoded once.
        if self._kept is None or self._kept[0] != number:
            self._kept = (number, super().image(encoded, place, request))
        clean = self._kept[1]
        if clean is None:
            return None
        corruption, _, severity = self.cells[cell].partition("/")
        seed = stream_seed(self.seed, "corruption", number)
        return corrupt(clean[None], corruption, int(severity), [seed], self.frost)[0]


class ImageNetCLikeDataModule(ShardDataModule):
    """Every validation image of ``<root>/imagenet/`` under every corruption; the test loader is ``imagenet-c-like``.

    The parameters are ImageNet-C's, but its files were compressed once more and drawn with other random numbers: by a
    third party's comparison AlexNet's error moves by up to 5 points. So results carry this name, never ImageNet-C's.

    Args:
        root: folder that holds ``imagenet/``.
        corruptions: names; the paper's 15 by default.
        severities: 1 to 5.
        crop: resize and crop before the corruption.
        frost: folder of ImageNet-C's frost pictures (frost1.png ... frost5.jpg); null draws frost of our own.
        eval_batch_size: samples a rank and batch.
        num_workers: processes that read, decode and corrupt; 0 does all in the main process.
        seed: of the corruptions; null takes that of ``seed_everything``.
        source: subfolder of ``root`` with the clean images.
        name: name of the test loader.
        reading: how shards are read.
    """

    def __init__(
        self,
        root: str | Path = "data",
        corruptions: Sequence[str] = CORRUPTIONS,
        severities: Sequence[int] = SEVERITIES,
        crop: EvaluationCrop = EvaluationCrop(),
        frost: Path | None = None,
        eval_batch_size: int = 256,
        num_workers: int = 8,
        seed: int | None = None,
        source: str = "imagenet",
        name: str = NAME,
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, name, eval_batch_size, eval_batch_size, num_workers, seed, reading)
        check_given(source=source)
        self.cells = chosen_cells(corruptions, severities)
        self.crop = crop
        self.frost = None if frost is None else FrostPictures(frost)
        self.source = source
        self._clean: TableSplit | None = None

    def folders(self) -> list[Path]:
        """Return the folder that must be there."""
        return [] if is_url(self.root) else [Path(self.root) / self.source]

    def setup(self, stage: str) -> None:
        """Read the shard index of the clean images."""
        check_stage(self.name, stage)
        if is_url(self.root):
            raise UserError(
                f"Every image is read for every cell, which {shown(self.root)} cannot: copy the shards to a disk."
            )
        if self._clean is None:
            self._clean = open_table(Path(self.root) / self.source, "val", self.reading)

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the one test loader."""
        assert self._clean is not None
        split = under_all_cells(self._clean, [CELLS.index(cell) for cell in self.cells])
        source, plan = self.evaluation_order(split)
        samples = CorruptedSamples(source, self.crop, self.cells, self.seed, self.frost, self.reading.on_error)
        return {self.name: self.loader(samples, plan, keeps_workers=False)}

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """The one test set, with its cells."""
        assert self._clean is not None
        protocol = {
            **self.describe(self._clean, "val", self.crop),
            "images_a_cell": len(self._clean),
            "cells": list(self.cells),
            "corrupted": "as loaded; ImageNet-C-like, not ImageNet-C",
            "corruption_seed": self.seed,
            "frost": "drawn" if self.frost is None else "pictures of a folder",
        }
        names = self._clean.class_names
        count = len(self._clean) * len(self.cells)
        return {self.name: EvaluationSet(self.name, count, protocol, class_names=names, groups=CELLS)}

    def sample_key(self, name: str) -> Callable[[int], str]:
        """Return what gives the name of each sample by its number: the cell's and the image's."""
        assert self._clean is not None
        key, cells = self._clean.key, self.cells
        return lambda number: f"{cells[number % len(cells)]}/{key(number // len(cells))}"

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless a network of ``num_classes`` classes fits the labels."""
        assert self._clean is not None
        check_classes(self._clean, num_classes)


def under_all_cells(clean: TableSplit, groups: Sequence[int]) -> TableSplit:
    """Return each sample once for each cell, the cells of an image one after another."""
    table = clean.table
    rows = np.arange(len(table)) if table.row is None else table.row
    repeated = SampleTable(
        readers=table.readers,
        label=np.repeat(table.label, len(groups)),
        lengths=table.lengths * len(groups),
        reader=None if table.reader is None else np.repeat(table.reader, len(groups)),
        row=np.repeat(rows, len(groups)),
        group=np.tile(np.array(groups, dtype=np.int64), len(table)),
    )
    return replace(clean, table=repeated)
