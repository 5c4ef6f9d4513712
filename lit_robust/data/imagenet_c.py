"""ImageNet-C: ImageNet's validation images under 19 corruptions at 5 severities (Hendrycks & Dietterich 2019)."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import DataError, UserError, check_choice, check_count
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import Request
from lit_robust.data.loading.samples import Encoded, EvaluationSamples, OnError, SampleTable, Source, join
from lit_robust.data.loading.splits import TableSplit, check_same_classes, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import ShardDataModule, SingleSetDataModule, check_classes, check_stage
from lit_robust.data.packing.corrupting import CELLS, PUBLISHED, cells_there, chosen_cells, is_extra, lacking
from lit_robust.data.settings import check_name
from lit_robust.reference.corruption_baselines import FAMILIES
from lit_robust.shards.info import GENERATED, read_info
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, CORRUPTIONS, SEVERITIES
from lit_robust.stimuli.corruptions import FrostPictures, corrupt

LIKE = "imagenet-c-like"
CELLS_OWN = ("corruption", "severity", "stimulus_sha256")
log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class ImageNetCDataModule(SingleSetDataModule):
    """Shards in ``<root>/imagenet-c/<corruption>/<severity>/``, split ``val``; one test loader, ``imagenet-c``.

    A sample's group is its cell, ``5 * corruption + severity - 1`` in the order of the benchmark's corruptions. The
    images are 224 px files and are never resized (hendrycks/robustness ``ImageNet-C/test.py`` crops their centre).

    Images that this suite corrupted are not ImageNet-C's: shards of `lit-robust data corrupt` are refused under this
    name and belong into another folder, ``imagenet-c-like``, which ``name`` then says.

    ImageNet-C-bar, ImageNet-3DCC and Tiny-ImageNet-C have this form, too: their folder is the ``name``.

    Attributes:
        corruptions: names; the paper's 15 by default. The extra four are speckle_noise, gaussian_blur, spatter,
            saturate. ``imagenet-c-bar`` for its 10, ``imagenet-3dcc`` for its 12. Null for those of the 19 that are
            there.
        severities: 1 to 5. Null for those that are there.
        subset: file with the name of one image a line, to which every cell is restricted, such as RobustBench's 5,000
            (``robustbench/data/imagenet_test_image_ids.txt``); folders and extensions do not matter. Null for all.
    """

    corruptions: Literal["imagenet-c-bar", "imagenet-3dcc"] | Sequence[str] | None = CORRUPTIONS
    severities: Sequence[int] | None = SEVERITIES
    subset: Path | None = None
    name: str = field(default=PUBLISHED, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.split_name = "val"
        self.crop = EvaluationCrop(resize=None, crop=None)
        self.takes_what_is_there = self.corruptions is None or self.severities is None
        family, named = ALL_CORRUPTIONS, self.corruptions
        if isinstance(named, str):
            check_choice("corruptions", named, FAMILIES)
            family = named = FAMILIES[named]
        self.groups = chosen_cells(family, SEVERITIES, family)
        severities = SEVERITIES if self.severities is None else self.severities
        self.cells = chosen_cells(family if named is None else named, severities, family)

    def open_samples(self) -> TableSplit:
        """Read the shard index of every cell."""
        self.check_on_disk("ImageNet-C joins many sets")
        folder = Path(self.root) / self.name
        kept = None if self.subset is None else read_names(self.subset)
        found = []
        absent = [cell for cell in self.cells if not (folder / cell).is_dir()]
        if folder.is_dir() and absent and not self.takes_what_is_there:
            raise UserError(
                f"{folder} lacks {len(absent)} of {len(self.cells)} cells, the first is {absent[0]}: copy them there, "
                "or set corruptions to null, as `-c eval/suite` does, which tests those that are there."
            )
        cells = cells_there(folder, self.cells) if self.takes_what_is_there else self.cells
        for cell in tqdm(cells, f"opening {self.name}", unit="cell", delay=2):
            check_origin(folder / cell, self.name)
            split = open_table(folder / cell, "val", self.reading)
            found.append(split if kept is None else restrict(split, kept))
        joined = join_cells(found, [self.groups.index(cell) for cell in cells], cells)
        lacks = lacking(cells, self.cells)
        if not lacks:
            return joined
        log.warning("%s: %s, so there is no mean over all corruptions.", folder, lacks)
        return replace(joined, protocol={**joined.protocol, "lacking_cells": lacks})


def check_origin(folder: Path, name: str) -> None:
    """Raise a UserError where generated shards go by the name of the published ones."""
    if name != PUBLISHED or not folder.is_dir():
        return
    info = read_info(folder)[1]
    if any(GENERATED in said for said in (info, *info.get("splits", {}).values())):
        raise UserError(
            f"{folder} was made by `lit-robust data corrupt`, so its results are not ImageNet-C's: move the set to a "
            "folder imagenet-c-like, and set name to that."
        )


def read_names(file: Path) -> frozenset[str]:
    """Return the names of images that a text file lists, without folders and extensions.

    Raises:
        UserError: it cannot be read, or names nothing or something twice.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"The subset file {file} cannot be read ({error}): give a text file, one name a line."
        ) from error
    names = [_stem(line) for line in lines]
    if not names or len(set(names)) < len(names):
        raise UserError(f"The subset file {file} names no image, or one twice: give one name a line, each once.")
    return frozenset(names)


def restrict(split: TableSplit, names: frozenset[str]) -> TableSplit:
    """Return the samples of the given names.

    Raises:
        DataError: the split lacks one of them, or has one twice.
    """
    stems = [_stem(split.table.key(number)) for number in range(len(split))]
    kept = np.array([number for number, stem in enumerate(stems) if stem in names], dtype=np.int64)
    lacking = sorted(names - set(stems))
    if lacking or len(kept) > len(names):
        what = (
            f"lacks {len(lacking)} of the subset's {len(names)} images, the first is {lacking[0]}"
            if lacking
            else (f"has {len(kept)} images of the subset's {len(names)} names")
        )
        raise DataError(f"{split.where} {what}: name the subset that belongs to these shards.")
    restricted = {"restricted": f"{len(kept)} of {len(split)} images, by the subset's names"}
    return replace(split, protocol={**split.protocol, **restricted}, table=split.table.select(kept))


def join_cells(splits: Sequence[TableSplit], groups: Sequence[int], cells: Sequence[str]) -> TableSplit:
    """Return the cells as one split, each sample with the number of its cell.

    Raises:
        DataError: the cells do not hold the same number of images of each class, and none was to be skipped.
    """
    first = splits[0]
    classes = [np.unique(split.table.label, return_counts=True) for split in splits]
    skipped = {
        cell: split.protocol["skipped"]
        for cell, split in zip(cells, splits, strict=True)
        if "skipped" in split.protocol
    }
    for split, counts in zip(splits, classes, strict=True):
        check_same_classes(first, split)
        if not skipped and not all(map(np.array_equal, counts, classes[0])):
            raise DataError(
                f"{split.where} holds {len(split)} images, but {first.where} {len(first)}, or of other classes: copy "
                "the shards of one of them again."
            )
    digests = {cell: split.protocol["shards_sha256"] for cell, split in zip(cells, splits, strict=True)}
    benchmark, extra = ({cell: digests[cell] for cell in cells if is_extra(cell) is wanted} for wanted in (False, True))
    return TableSplit(
        where=f"{first.where} and {len(splits) - 1} more cells",
        num_classes=first.num_classes,
        class_names=first.class_names,
        protocol={
            **({"restricted": first.protocol["restricted"]} if "restricted" in first.protocol else {}),
            "images_a_cell": len(first),
            "cells": list(cells),
            # Cells that are not the benchmark's change nothing that is measured on those.
            **({"shards_sha256": _digest(benchmark)} if benchmark else {}),
            **({"extra_shards_sha256": _digest(extra)} if extra else {}),
            **({"skipped": skipped} if skipped else {}),
            **({GENERATED: _common(first.protocol[GENERATED])} if GENERATED in first.protocol else {}),
        },
        table=join([split.table for split in splits], groups),
    )


def _common(generated: Mapping[str, object]) -> dict[str, object]:
    """Return what made a cell, without what is that cell's own."""
    return {name: value for name, value in generated.items() if name not in CELLS_OWN}


def _digest(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(digests.values()).encode()).hexdigest()


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].split(".")[0]


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


@dataclass(eq=False, repr=False)
class ImageNetCLikeDataModule(ShardDataModule):
    """Every validation image of ``<root>/imagenet/`` under every corruption; the test loader is ``imagenet-c-like``.

    The parameters are ImageNet-C's, but its files were compressed once more and drawn with other random numbers: by a
    third party's comparison AlexNet's error moves by up to 5 points. So results carry this name, never ImageNet-C's.

    Attributes:
        corruptions: names; the paper's 15 by default.
        severities: 1 to 5.
        crop: resize and crop before the corruption.
        frost: folder of ImageNet-C's frost pictures (frost1.png ... frost5.jpg); null draws frost of our own.
        seed: of the corruptions; null takes that of ``seed_everything``.
        source: subfolder of ``root`` with the clean images.
    """

    corruptions: Sequence[str] = CORRUPTIONS
    severities: Sequence[int] = SEVERITIES
    crop: EvaluationCrop = EvaluationCrop()
    frost: Path | None = None
    _: KW_ONLY
    seed: int | None = None
    source: str = "imagenet"
    name: str = LIKE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.draws = run_seed() if self.seed is None else self.seed
        check_count("seed", self.draws, 0)
        check_name("source", self.source)
        self.cells = chosen_cells(self.corruptions, self.severities)
        self.pictures = None if self.frost is None else FrostPictures(self.frost)
        self._clean: TableSplit | None = None

    @property
    def subfolders(self) -> Sequence[str]:
        """The subfolder of ``root`` that is read."""
        return (self.source,)

    def setup(self, stage: str) -> None:
        """Read the shard index of the clean images."""
        check_stage(self.name, stage)
        self.check_on_disk("Every image is read for every cell")
        if self._clean is None:
            self._clean = open_table(Path(self.root) / self.source, "val", self.reading)

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the one test loader."""
        assert self._clean is not None
        split = under_all_cells(self._clean, [CELLS.index(cell) for cell in self.cells])
        source, plan = self.evaluation_order(split)
        samples = CorruptedSamples(source, self.crop, self.cells, self.draws, self.pictures, self.reading.on_error)
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
            "corruption_seed": self.draws,
            "frost": "drawn" if self.pictures is None else "pictures of a folder",
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
