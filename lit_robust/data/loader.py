"""Loading batches: samples read, decoded and collated in worker processes, in a planned order, resumable."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_robust.batch import Batch
from lit_robust.data.transforms import EvaluationCrop, Image, TrainingCrop
from lit_robust.errors import DataError, UserError
from lit_robust.seeds import stream_seed
from lit_robust.shards import IndexedReader, decode_rgb


@dataclass(frozen=True)
class Request:
    """One batch to load: the epoch it belongs to, its sample numbers, and which of them count."""

    epoch: int
    numbers: NDArray[np.int64]
    valid: NDArray[np.bool_]


class Samples(Dataset[Batch], ABC):
    """The samples of one set; asked for a whole batch at a time.

    Args:
        reader: gives the bytes of each sample.
        rows: ``[N]`` the sample's row in the shard index, for each sample number of this set.
        labels: ``[N]`` int64.
        textures: ``[N]`` int64, for cue-conflict sets.
    """

    def __init__(
        self,
        reader: IndexedReader,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        textures: NDArray[np.int64] | None = None,
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.labels = labels
        self.textures = textures

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def prepare(self, image: Image, epoch: int, number: int) -> Tensor:
        """Return uint8 ``[3, H, W]`` of the decoded image ``[H, W, 3]``."""

    def __getitem__(self, request: Request) -> Batch:
        images = [self._image(request.epoch, int(number)) for number in request.numbers]
        first = images[0].shape
        for number, image in zip(request.numbers, images, strict=True):
            if image.shape != first:
                name = self.reader.key(int(self.rows[number]))
                raise DataError(
                    f"Images of one batch differ in size, {name} is {image.shape[2]} x {image.shape[1]} px: "
                    "set resize and crop in the data's settings."
                )
        return Batch(
            # Pixels are decoded channels last, and stay so: one copy here, and none in any convolution later.
            image=torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2),
            label=torch.from_numpy(self.labels[request.numbers]),
            index=torch.from_numpy(request.numbers.copy()),
            valid=torch.from_numpy(request.valid.copy()),
            texture=None if self.textures is None else torch.from_numpy(self.textures[request.numbers]),
        )

    def _image(self, epoch: int, number: int) -> Tensor:
        row = int(self.rows[number])
        return self.prepare(decode_rgb(self.reader.image_bytes(row), self.reader.name(row)), epoch, number)


class TrainingSamples(Samples):
    """Samples with a crop and flip that follow from (seed, epoch, sample), whichever worker draws them."""

    def __init__(
        self,
        reader: IndexedReader,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        crop: TrainingCrop,
        seed: int,
    ) -> None:
        super().__init__(reader, rows, labels)
        self.crop = crop
        self.seed = seed

    def prepare(self, image: Image, epoch: int, number: int) -> Tensor:
        """Crop and flip at random."""
        random = np.random.Generator(np.random.PCG64(stream_seed(self.seed, "augmentation", epoch, number)))
        return self.crop(image, random)


class EvaluationSamples(Samples):
    """Samples with the crop of the evaluation's protocol."""

    def __init__(
        self,
        reader: IndexedReader,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        crop: EvaluationCrop,
        textures: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(reader, rows, labels, textures)
        self.crop = crop

    def prepare(self, image: Image, epoch: int, number: int) -> Tensor:
        """Resize and crop the centre."""
        return self.crop(image)


class PlanSampler:
    """Hands the requests of one epoch to a loader, from the batch where an interrupted run stopped.

    Attributes:
        epoch: the epoch that the next iteration delivers; Lightning sets it at each epoch's start.
        start: batches of that epoch to leave out.
    """

    def __init__(self, plan: Callable[[int], list[Request]]) -> None:
        self.plan = plan
        self.epoch = 0
        self.start = 0
        self._length = len(plan(0))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than before begins at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        return iter(self.plan(self.epoch)[self.start :])


class PlannedLoader:
    """A loader whose order is planned and whose state is (epoch, batches done), the same on every rank.

    It wraps torch's ``DataLoader`` rather than extending it, so that Lightning neither swaps the sampler nor builds it
    again: rank and world are in the plan already. Lightning saves and restores ``state_dict`` by itself.

    Args:
        samples: what to load.
        plan: epoch to the requests of this rank, the same number for every epoch.
        num_workers: processes that read and decode; 0 does both in this process.
        pin_memory: put batches into page-locked memory, for a GPU.
        keeps_workers: keep the processes from one epoch to the next.
        order: what else the order follows from; a state of another order is refused.
    """

    # Lightning looks for it beside `sampler`, as every torch loader has both.
    batch_sampler = None

    def __init__(
        self,
        samples: Samples,
        plan: Callable[[int], list[Request]],
        num_workers: int,
        pin_memory: bool,
        keeps_workers: bool,
        order: Mapping[str, int],
    ) -> None:
        self.sampler = PlanSampler(plan)
        self.order = dict(order)
        self._delivered = 0
        self._loader: DataLoader[Batch] = DataLoader(
            samples,
            batch_size=None,
            sampler=self.sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=keeps_workers and num_workers > 0,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._delivered = self.sampler.start
        try:
            for batch in self._loader:
                self._delivered += 1
                yield batch
        except UserError as error:
            # torch hands on a worker's error as its whole traceback; the sentence is the end of it.
            raise type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()) from error
        self.sampler.start = 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, how many of its batches were delivered, and what the order follows from."""
        return {"epoch": self.sampler.epoch, "batches": self._delivered, **self.order}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches of ``state``; a finished epoch is followed by the next one.

        Raises:
            UserError: the state is of another order, so that samples would be lost or come twice.
        """
        for name, value in self.order.items():
            if state.get(name) != value:
                raise UserError(
                    f"The checkpoint was written in the middle of training with {name} {state.get(name)}, but this run "
                    f"has {value}: resume with the same data, seed, batch size times ranks."
                )
        finished = state["batches"] >= len(self)
        self.sampler.epoch = state["epoch"] + int(finished)
        self.sampler.start = 0 if finished else state["batches"]
