"""Batches decoded, cropped and put together, in a worker process."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from multiprocessing.reduction import ForkingPickler
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_robust.core.batch import Batch
from lit_robust.core.errors import DataError
from lit_robust.core.seeds import stream_seed
from lit_robust.data.blocks import BatchMemory, batch_memory
from lit_robust.data.plan import Request
from lit_robust.data.source import Encoded, Source
from lit_robust.data.table import Column
from lit_robust.data.transforms import CropError, EvaluationCrop, Image, TrainingCrop
from lit_robust.shards import decode_rgb

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
            decoded = decode_rgb(data, encoded.name(place))
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
    """Return the batch whose parts beside the image are ``columns``."""
    return Batch(image=image, **{name: torch.from_numpy(column) for name, column in columns.items()})


def split_batch(batch: Batch) -> tuple[Callable[..., Batch], tuple[Tensor, dict[str, Column]]]:
    """Return how a batch goes to another process: the image as shared memory, what is small as plain bytes.

    For each tensor torch would take shared memory and open a connection of its own.
    """
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    image = parts.pop("image")
    return join_batch, (image, {name: part.numpy() for name, part in parts.items() if part is not None})


ForkingPickler.register(Batch, split_batch)
