"""The samples of a set, where their bytes come from, and batches of them decoded, cropped and put together."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.reduction import ForkingPickler
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lit_robust.core.batch import Batch
from lit_robust.core.errors import DataError
from lit_robust.core.seeds import stream_seed
from lit_robust.data.loading.blocks import BatchMemory, batch_memory
from lit_robust.data.loading.order import Request
from lit_robust.data.loading.transforms import CropError, EvaluationCrop, Image, TrainingCrop
from lit_robust.shards import IndexedReader, decode_rgb

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


@dataclass(frozen=True)
class Encoded:
    """A batch before it is read and decoded.

    Attributes:
        read: place in the batch to the file's content; None for a sample that is lost and that the settings allow to
            skip. Samples are read one by one, so that each is decoded while it is in a processor's cache.
        name: place in the batch to what to call the sample in a message.
        label: ``[B]`` class, or -1.
        group: ``[B]``, where the set has groups.
        texture: ``[B]``, for cue-conflict images.
    """

    read: Callable[[int], bytes | None]
    name: Callable[[int], str]
    label: Column
    group: Column | None = None
    texture: Column | None = None


@dataclass(frozen=True)
class SampleName:
    """The name of a sample, composed where it is written out, which is in errors alone.

    Attributes:
        of: place in the batch to the name.
        place: of the sample.
    """

    of: Callable[[int], str]
    place: int

    def __str__(self) -> str:
        return self.of(self.place)


class Source(ABC):
    """Gives the encoded images of a batch; used in worker processes, to which it is pickled."""

    @abstractmethod
    def fetch(self, request: Request) -> Encoded:
        """Return the batch that ``request`` asks for.

        Raises:
            DataError: a sample is not there; here, or when it is read.
        """


class TableSource(Source):
    """Reads by place, in any order.

    Args:
        table: the samples.
        whole_shards: whether the order keeps to few shards at a time, which then are read as a whole.
    """

    def __init__(self, table: SampleTable, whole_shards: bool = False) -> None:
        self.table = table
        self.whole_shards = whole_shards

    def fetch(self, request: Request) -> Encoded:
        """Return the samples of the request's numbers."""
        numbers = request.numbers
        for reader, row in map(self.table.find, numbers.tolist()) if self.whole_shards else ():
            if isinstance(reader, IndexedReader):
                reader.read_ahead(row)

        def read(place: int) -> bytes:
            reader, row = self.table.find(int(numbers[place]))
            return reader.image_bytes(row)

        def name(place: int) -> str:
            reader, row = self.table.find(int(numbers[place]))
            return reader.name(row)

        return Encoded(
            read=read,
            name=name,
            label=self.table.label[numbers],
            group=None if self.table.group is None else self.table.group[numbers],
            texture=None if self.table.texture is None else self.table.texture[numbers],
        )


OnError = Literal["error", "skip"]
log = logging.getLogger(__name__)


class Samples(Dataset[Batch], ABC):
    """The samples of one set; asked for a whole batch at a time.

    Args:
        source: gives the encoded images.
        on_error: what to do about an image that cannot be decoded: ``error`` ends the run; ``skip`` puts a copy of
            another image of the batch in its place, which is not valid, and marks it as broken.
    """

    def __init__(self, source: Source, on_error: OnError = "error") -> None:
        self.source = source
        self.on_error = on_error

    @abstractmethod
    def prepare(self, image: Image, epoch: int, number: int) -> Tensor:
        """Return uint8 ``[3, H, W]`` of the decoded image ``[H, W, 3]``."""

    def __getitem__(self, request: Request) -> Batch:
        encoded = self.source.fetch(request)
        count = len(request.numbers)
        broken = np.zeros(count, dtype=bool)
        memory: BatchMemory | None = None
        for place in range(count):
            image = self.image(encoded, place, request)
            if image is None:
                broken[place] = True
                continue
            # Pixels are decoded channels last, and stay so: one copy here, and none in any convolution later.
            rows = image.permute(1, 2, 0)
            if memory is None:
                memory = batch_memory((count, *rows.shape))
            if rows.shape != memory.pixels.shape[1:]:
                raise DataError(
                    f"Images of one batch differ in size, {encoded.name(place)} is {rows.shape[1]} x {rows.shape[0]} "
                    "px: set resize and crop in this set's settings, or pack images of one size."
                )
            memory.pixels[place] = rows
        if memory is None:
            memory = BatchMemory(self.blank(encoded.name(0)).permute(1, 2, 0).repeat(count, 1, 1, 1))
        # Where an image is broken, the batch's first good one stands, with its label.
        taken = np.where(broken, np.argmin(broken), np.arange(count))
        if broken.any():
            memory.pixels[torch.from_numpy(broken)] = memory.pixels[int(np.argmin(broken))].clone()
        return Batch(
            image=memory.finished().permute(0, 3, 1, 2),
            label=torch.from_numpy(encoded.label[taken]),
            index=torch.from_numpy(request.numbers.copy()),
            valid=torch.from_numpy(request.valid & ~broken),
            group=None if encoded.group is None else torch.from_numpy(encoded.group[taken]),
            texture=None if encoded.texture is None else torch.from_numpy(encoded.texture[taken]),
            broken=torch.from_numpy(request.valid & broken) if self.on_error == "skip" else None,
        )

    def blank(self, name: str) -> Tensor:
        """Return what stands for a whole batch of broken images, the first of them called ``name``."""
        raise DataError(f"No image of a whole batch can be read, the first is {name}: replace them.")

    def image(self, encoded: Encoded, place: int, request: Request) -> Tensor | None:
        """Return uint8 ``[3, H, W]`` of the sample in ``place`` of a batch; None where it is broken and skipped."""
        data = encoded.read(place)
        if data is None:
            return None
        try:
            decoded = decode_rgb(data, SampleName(encoded.name, place))
        except DataError as error:
            if self.on_error == "error":
                raise
            log.warning("%s Left out, as on_error is skip.", error)
            return None
        try:
            return self.prepare(decoded, request.epoch, int(request.numbers[place]))
        except CropError as error:
            raise DataError(f"The image {encoded.name(place)} {error}") from error


class TrainingSamples(Samples):
    """Samples with a crop and flip that follow from (seed, epoch, sample), whichever worker draws them."""

    def __init__(self, source: Source, crop: TrainingCrop, seed: int, on_error: OnError = "error") -> None:
        super().__init__(source, on_error)
        self.crop = crop
        self.seed = seed

    def prepare(self, image: Image, epoch: int, number: int) -> Tensor:
        """Crop and flip at random."""
        random = np.random.Generator(np.random.PCG64(stream_seed(self.seed, "augmentation", epoch, number)))
        return self.crop(image, random)


class EvaluationSamples(Samples):
    """Samples with the crop of the evaluation's protocol."""

    def __init__(self, source: Source, crop: EvaluationCrop, on_error: OnError = "error") -> None:
        super().__init__(source, on_error)
        self.crop = crop

    def prepare(self, image: Image, epoch: int, number: int) -> Tensor:
        """Resize and crop the centre."""
        return self.crop(image)

    def blank(self, name: str) -> Tensor:
        """Return a black image, of which nothing is counted; a network takes it at the crop's size, or at 224 px."""
        side = self.crop.crop or 224
        return torch.zeros(side, side, 3, dtype=torch.uint8).permute(2, 0, 1)


def join_batch(image: Tensor, columns: Mapping[str, Column]) -> Batch:
    """Return the batch whose parts, apart from the image, are ``columns``."""
    return Batch(image=image, **{name: torch.from_numpy(column) for name, column in columns.items()})


def split_batch(batch: Batch) -> tuple[Callable[..., Batch], tuple[Tensor, dict[str, Column]]]:
    """Return how a batch goes to another process: the image as shared memory, what is small as plain bytes.

    For each tensor torch would take shared memory and open a connection of its own.
    """
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    image = parts.pop("image")
    return join_batch, (image, {name: part.numpy() for name, part in parts.items() if part is not None})


ForkingPickler.register(Batch, split_batch)
