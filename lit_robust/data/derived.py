"""Derived sets: as `lit-robust data derive` wrote them, or made as the images are loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import Request
from lit_robust.data.loading.samples import Encoded, EvaluationSamples, OnError, SampleTable, Source
from lit_robust.data.loading.splits import Split, TableSplit, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.settings import check_name
from lit_robust.stimuli.stimulus import Origin, Stimulus, ranks


@dataclass(eq=False, repr=False)
class DerivedDataModule(SingleSetDataModule):
    """Shards in ``<root>/<name>/``, such as ``scrambled-4``; the test loader has that name.

    What made them stands in their info file, and in each result's protocol.

    Attributes:
        evaluation: resize and crop; none by default, as the images were cropped before.
        split: of the shards.
    """

    evaluation: EvaluationCrop = EvaluationCrop(resize=None, crop=None)
    _: KW_ONLY
    name: str
    split: str = "val"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.split_name, self.crop = self.split, self.evaluation

    def open_samples(self) -> Split:
        """Read the shard index."""
        return self.open(self.split)


class StimulusSamples(EvaluationSamples):
    """Samples cropped, and then made into something else.

    Args:
        source: gives the encoded images.
        crop: comes before the stimulus.
        stimulus: what is made of each image.
        table: the samples.
        keys: of all images of the shards.
        on_error: what to do about an image that cannot be decoded.
    """

    def __init__(
        self,
        source: Source,
        crop: EvaluationCrop,
        stimulus: Stimulus,
        table: SampleTable,
        keys: Sequence[str],
        on_error: OnError = "error",
    ) -> None:
        super().__init__(source, crop, on_error)
        self.stimulus = stimulus
        self.table = table
        self.keys = keys

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """The place of each image of the shards in the order of folders and names."""
        return ranks(self.keys)

    def image(self, encoded: Encoded, place: int, request: Request) -> Tensor | None:
        """Return uint8 ``[3, H, W]`` of the sample in ``place`` of a batch; None where it is broken and skipped.

        Raises:
            DataError: nothing can be made of it.
        """
        clean = super().image(encoded, place, request)
        if clean is None:
            return None
        number = int(request.numbers[place])
        row = number if self.table.row is None else int(self.table.row[number])
        rank = int(self.ranks[row]) if self.stimulus.ranked else 0
        origin = Origin(self.table.key(number), row, int(self.table.label[number]), rank, self.crop)
        made = self.stimulus.make(clean[None], [origin])[0]
        if made is None:
            raise DataError(
                f"The image {encoded.name(place)} is one of those that {self.stimulus.lack}, which only making it "
                "tells: write the set with `lit-robust data derive`, which leaves such images out."
            )
        return made


@dataclass(eq=False, repr=False)
class StimulusDataModule(SingleSetDataModule):
    """What a stimulus makes of the images of ``<root>/<source>/`` as they are loaded; the test loader is ``name``.

    The pixels are those that `lit-robust data derive` writes as PNG. Images that the stimulus is known not to make are
    left out, and counted in the results.

    Attributes:
        stimulus: what is made of each image, such as ``lit_robust.stimuli.scrambled.Scrambled``.
        evaluation: resize and crop before it.
        name: of the test loader, such as ``scrambled-4``.
        source: subfolder of ``root`` with the images.
        split: of their shards.
    """

    evaluation: EvaluationCrop = EvaluationCrop()
    _: KW_ONLY
    stimulus: Stimulus
    name: str
    source: str = "imagenet"
    split: str = "val"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("source", self.source)
        self.split_name, self.crop = self.split, self.evaluation

    @property
    def subfolders(self) -> tuple[str, ...]:
        """The subfolder of ``root`` that is read."""
        return (self.source,)

    def open_samples(self) -> TableSplit:
        """Read the shard index, and choose the images that something can be made of."""
        self.check_on_disk("A stimulus is made by the images' keys")
        whole = open_table(Path(self.root) / self.source, self.split, self.reading)
        table = whole.table
        self._keys = [table.key(number) for number in range(len(table))] if self.stimulus.ranked else []
        kept = [n for n in range(len(table)) if self.stimulus.fits(table.key(n), int(table.label[n]))]
        if not kept:
            raise UserError(f"None of the {len(whole)} images of {whole.where} fit: they {self.stimulus.lack}.")
        protocol = {**whole.protocol, "as_loaded": {**self.stimulus.described, "not_made": len(whole) - len(kept)}}
        if len(kept) == len(whole):
            return replace(whole, protocol=protocol)
        protocol["restricted"] = f"{len(kept)} of {len(whole)} images, the others {self.stimulus.lack}"
        return replace(whole, protocol=protocol, table=table.select(np.array(kept)))

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the one test loader."""
        split = self.samples
        assert isinstance(split, TableSplit)
        source, plan = self.evaluation_order(split)
        samples = StimulusSamples(source, self.crop, self.stimulus, split.table, self._keys, self.reading.on_error)
        return {self.name: self.loader(samples, plan, keeps_workers=False)}

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """The one test set, labelled as made while it is loaded."""
        (described,) = super().evaluation_sets.values()
        return {self.name: replace(described, protocol={**described.protocol, "derived": "as loaded"})}

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each image by its number."""
        return self.samples.key
