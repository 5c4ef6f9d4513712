"""What travels from data to networks and callbacks: a batch, and what a test set says of itself."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_robust.core.arrays import as_tensor
from lit_robust.core.errors import UserError


@dataclass
class Batch:
    """One batch of images with their labels and places in the data set.

    A module of one's own may write ``images, labels = batch``.

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

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.image, self.label)

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


# Under what names dicts of others, such as Hugging Face's, have them.
IMAGES, LABELS = ("image", "images", "img", "pixel_values"), ("label", "labels", "fine_label")


def as_batch(given: Any, first: int, rank: int = 0, world: int = 1) -> Batch:
    """Return what any loader gave as a batch, numbered as it comes; a `Batch` as it is.

    Args:
        given: ``(image, label)``, what stands behind the two is not read; or a dict such as ``{"image", "label"}``,
            with ``group`` where the set has groups. Images are ``[B, C, H, W]``, uint8 or floats in [0, 1], or as many
            single ones of one shape; labels are ``[B]`` whole numbers. Both may be tensors, NumPy arrays or lists.
        first: how many samples this process was given before.
        rank: of this process.
        world: how many processes share the samples; their numbers interlock.

    Raises:
        UserError: it is none of these.

    Example:
        >>> batch = as_batch([torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [5, 7]], first=10)
        >>> batch.image.dtype, batch.label, batch.index
        (torch.float32, tensor([5, 7]), tensor([10, 11]))
    """
    if isinstance(given, Batch):
        return given
    image, label = image_and_label(given)
    if isinstance(image, list | tuple) and image and all(isinstance(one, Tensor) for one in image):
        shapes = {tuple(one.shape) for one in image}
        if len(shapes) > 1:
            raise UserError(f"Images of a batch have the shapes {', '.join(map(str, shapes))}: resize or crop them.")
        image = torch.stack(list(image))
    images = as_tensor("The batch's image", image)
    labels = as_tensor("The batch's label", label, images.device)
    if not (images.dtype == torch.uint8 or images.is_floating_point()) or images.ndim != 4:
        raise UserError(
            f"A batch has images of {images.dtype} and shape {list(images.shape)}: give [batch, channels, height, "
            "width], uint8 or floats in [0, 1]."
        )
    if images.shape[1] > 4 and images.shape[3] in (1, 3, 4):
        raise UserError(
            f"A batch has images of shape {list(images.shape)}, whose channels are last: give [batch, channels, "
            "height, width], as images.permute(0, 3, 1, 2)."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != images.shape[:1]:
        raise UserError(
            f"A batch has labels of {labels.dtype} and shape {list(labels.shape)} for {len(images)} images: give one "
            "whole number an image."
        )
    index = (first + torch.arange(len(images), device=images.device)) * world + rank
    valid = torch.ones_like(index, dtype=torch.bool)
    group = given.get("group") if isinstance(given, Mapping) else None
    images = images if images.dtype == torch.uint8 else images.float()
    return Batch(images, labels.long(), index, valid, group).as_float()


def image_and_label(given: Any) -> tuple[Any, Any]:
    """Return the two parts of a batch, or of a sample, that any loader or data set gave.

    Raises:
        UserError: they cannot be recognised.
    """
    if isinstance(given, Mapping):
        image, label = (next((name for name in names if name in given), None) for names in (IMAGES, LABELS))
        if image is not None and label is not None:
            return given[image], given[label]
        raise UserError(
            f"A batch has {', '.join(map(str, given)) or 'nothing'}: rename what is wanted of it to image and label."
        )
    if isinstance(given, list | tuple) and len(given) >= 2:
        return given[0], given[1]
    raise UserError(
        f"A batch is a {type(given).__name__}, in which images and labels cannot be recognised: let the loader give "
        "(image, label), or a dict of both."
    )


RANGE_TOLERANCE = 1e-4  # A resized pixel may pass 1 by a rounding error; a normalised image passes it by far more.


def check_unit_range(images: Tensor) -> None:
    """Refuse images outside [0, 1], which a network here would normalise twice; waits for the device.

    Raises:
        UserError: some pixel is below 0, above 1, or not a number.
    """
    if not images.numel():
        return
    low, high = torch.stack(torch.aminmax(images)).tolist()
    if not math.isfinite(low + high):
        raise UserError("The loader's images hold numbers that are not finite: check its transform and its files.")
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        fix = "take Normalize out of its transform, and give mean and std to the network, or to evaluate"
        if low >= 0 and 128 < high <= 255:
            fix = "divide them by 255, or give them as uint8"
        raise UserError(f"The loader's images reach from {low:.3g} to {high:.3g}, and [0, 1] is wanted: {fix}.")


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
        warnings: sentences that stand next to every value measured on it.
    """

    name: str
    count: int
    protocol: Mapping[str, Any]
    categories: Mapping[str, Sequence[int]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    classes: Sequence[int] = ()
    groups: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def class_name(self, number: int) -> str:
        """Return what to call class ``number``."""
        return self.class_names[number] if number < len(self.class_names) else f"class {number}"
