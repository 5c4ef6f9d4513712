"""Batches decoded, cropped and put together, in a worker process."""

import logging
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lit_robust.batch import Batch
from lit_robust.data.plan import Request
from lit_robust.data.source import Encoded, Source
from lit_robust.data.transforms import EvaluationCrop, Image, TrainingCrop
from lit_robust.errors import DataError
from lit_robust.seeds import stream_seed
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
        images = [self.image(encoded, place, request) for place in range(len(request.numbers))]
        broken = np.array([image is None for image in images])
        if broken.all():
            images[0] = self.blank(encoded.names[0])
        # Each place takes its own image, or, where that is broken, the batch's first good one.
        taken = np.where(broken, np.argmin(broken), np.arange(len(images)))
        return self._collate(encoded, request, images, taken, broken)

    def blank(self, name: str) -> Tensor:
        """Return what stands for a whole batch of broken images, the first of them called ``name``."""
        raise DataError(f"No image of a whole batch can be read, the first is {name}: replace them.")

    def image(self, encoded: Encoded, place: int, request: Request) -> Tensor | None:
        """Return uint8 ``[3, H, W]`` of the sample in ``place`` of a batch; None where it is broken and skipped."""
        data = encoded.data[place]
        if data is None:
            return None
        try:
            decoded = decode_rgb(data, encoded.names[place])
        except DataError as error:
            if self.on_error == "error":
                raise
            log.warning("%s Left out, as on_error is skip.", error)
            return None
        return self.prepare(decoded, request.epoch, int(request.numbers[place]))

    def _collate(
        self,
        encoded: Encoded,
        request: Request,
        images: list[Tensor | None],
        taken: NDArray[np.int64],
        broken: NDArray[np.bool_],
    ) -> Batch:
        present = [image for place in taken if (image := images[place]) is not None]
        for place, image in zip(taken, present, strict=True):
            if image.shape != present[0].shape:
                raise DataError(
                    f"Images of one batch differ in size, {encoded.names[place]} is {image.shape[2]} x "
                    f"{image.shape[1]} px: set resize and crop in the data's settings."
                )
        return Batch(
            # Pixels are decoded channels last, and stay so: one copy here, and none in any convolution later. torch's
            # own function makes that copy in memory that is shared with the main process.
            image=default_collate([image.permute(1, 2, 0) for image in present]).permute(0, 3, 1, 2),
            label=torch.from_numpy(encoded.label[taken]),
            index=torch.from_numpy(request.numbers.copy()),
            valid=torch.from_numpy(request.valid & ~broken),
            group=None if encoded.group is None else torch.from_numpy(encoded.group[taken]),
            texture=None if encoded.texture is None else torch.from_numpy(encoded.texture[taken]),
            broken=torch.from_numpy(request.valid & broken) if self.on_error == "skip" else None,
        )


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
