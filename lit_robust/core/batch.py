"""What travels from data to networks and callbacks: a batch, and what a test set says of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class Batch:
    """One batch of images with their labels and places in the data set.

    Attributes:
        image: ``[B, 3, H, W]``; uint8 on the loader's side, float32 in [0, 1] after ``as_float``.
        label: ``[B]`` int64 class; for cue-conflict images the category of the shape.
        index: ``[B]`` int64, the sample's number in its data set.
        valid: ``[B]`` bool, false for the copies that pad the last evaluation batches.
        group: ``[B]`` int64, the ImageNet-C cell, the severity or the variant, where a set has one.
        texture: ``[B]`` int64, the category of the texture, for cue-conflict images.
        broken: ``[B]`` bool, true where an image could not be read and a copy stands in its place, which is not valid;
            only where the settings allow to skip such images.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    valid: Tensor
    group: Tensor | None = None
    texture: Tensor | None = None
    broken: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: function(tensor) for name, tensor in present.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; torch's loaders call this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def select(self, mask: Tensor) -> "Batch":
        """Return the samples where ``mask``, ``[B]`` bool, is true: the batch itself where it is for all.

        Waits for the device once.
        """
        rows = mask.nonzero()[:, 0]
        return self if len(rows) == len(self) else self._map(lambda tensor: tensor[rows])

    @property
    def valid_part(self) -> "Batch":
        """The valid samples, taken at the first use and shared from then on; ``valid`` may not change after that."""
        return self if self._taken is None else self._taken

    @cached_property
    def _taken(self) -> "Batch | None":
        # A batch that held itself would stay in the device's memory until the next garbage collection.
        part = self.select(self.valid)
        return None if part is self else part

    def readable(self) -> "Batch":
        """Return the batch without the copies that stand for images that could not be read.

        A batch of nothing else stays as it is: every rank has to take every step. Without such images, which settings
        have to allow, nothing is asked of the device.
        """
        return self.select(self.valid) if self.broken is not None and bool(self.valid.any()) else self

    def as_float(self) -> "Batch":
        """Return the batch with its images as float32 in [0, 1]."""
        if self.image.dtype != torch.uint8:
            return self
        return replace(self, image=self.image.float().div_(255.0))


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a training set says of itself to a module that wants each of its images once.

    Attributes:
        labels: int64 ``[N]``, the class of each sample.
        protocol: plain values: resize, crop, decoder, which samples these are.
    """

    labels: NDArray[np.int64]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationSet:
    """What one named test loader says of itself; every result measured on it carries this.

    Attributes:
        name: the loader's name and the second part of a metric's key, such as ``imagenet``.
        count: how many samples it delivers, each once; a result with another count is an error.
        protocol: plain values: split, resize, crop, decoder, digest of the shard index, restrictions.
        categories: for cue-conflict sets, category name to class numbers, in label order.
        class_names: what to call each class where a person reads; empty where nobody said.
        classes: the classes that a decision is taken among, ascending; empty for all of the network's.
        groups: what to call each of a batch's groups, such as ``fog/3``; empty for a set without groups.
    """

    name: str
    count: int
    protocol: Mapping[str, Any]
    categories: Mapping[str, Sequence[int]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    classes: Sequence[int] = ()
    groups: Sequence[str] = ()

    def class_name(self, number: int) -> str:
        """Return what to call class ``number``."""
        return self.class_names[number] if number < len(self.class_names) else f"class {number}"
