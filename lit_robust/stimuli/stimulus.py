"""What makes a derived set of images from a set of images: the contract of all stimuli.

Their fields are a command's options. So that its help comes at once, what works on tensors imports torch itself.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """What is known of an image besides its pixels.

    Attributes:
        key: its name in the set.
        number: its place in the set.
        label: its class.
        rank: its place among the set's images in the order of their folders and names, where the stimulus is `ranked`.
        crop: what was done to it before, decoded ``[H, W, 3]`` to ``[3, H, W]``, for what belongs to the whole image.
    """

    key: str
    number: int
    label: int
    rank: int = 0
    crop: "Callable[[NDArray[np.uint8]], Tensor] | None" = None


@dataclass(frozen=True, kw_only=True)
class Stimulus(ABC):
    """Makes another image of each image, or nothing.

    A subclass is a frozen dataclass whose fields are the settings. What is made of an image follows from the image, its
    origin and the settings alone, whatever else is in the batch.

    Attributes:
        kind: what tells this way of making images from others, such as ``scrambled``.
        lack: why an image may not be made, as in ``have no mask``.
        ranked: whether it asks for the images' ranks.
    """

    kind: ClassVar[str]
    lack: ClassVar[str] = "could not be made"
    ranked: ClassVar[bool] = False

    @abstractmethod
    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor | None]":
        """Return for each image what is made of it, uint8 ``[3, H, W]``, or None where nothing can be.

        Args:
            images: uint8 ``[B, 3, H, W]``, cropped.
            origins: one an image.

        Raises:
            UserError: the images or a setting do not fit.
        """

    def fits(self, key: str, label: int) -> bool:
        """Return whether something can be made of an image, as far as that is known without its pixels."""
        return True

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain values that decide the pixels; of a file its digest."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @property
    def set_name(self) -> str:
        """The kind, and which way of it where there are several that make different sets."""
        return self.kind

    @property
    def described(self) -> dict[str, Any]:
        """The set's name, the settings and their digest: what a set that is made so says of itself."""
        said = {"stimulus": self.set_name, **self.settings}
        return {**said, "stimulus_sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}


def _plain(value: Any) -> Any:
    assert not isinstance(value, Path), "a subclass gives the digest of what a path names"
    return list(value) if isinstance(value, tuple) else value


def ranks(keys: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each key in the order of folders and names, in which an image folder is read.

    >>> ranks(["b/1", "a-b/2", "a/9", "a/10"]).tolist()
    [3, 2, 1, 0]
    """
    order = sorted(range(len(keys)), key=lambda number: keys[number].split("/"))
    found = np.empty(len(keys), dtype=np.int64)
    found[order] = np.arange(len(keys))
    return found


def check_seed(seed: int) -> None:
    """Raise a UserError where a seed is negative."""
    if seed < 0:
        raise UserError(f"seed is {seed}: give 0 or more.")


def check_images(images: "Tensor", origins: Sequence[Origin]) -> None:
    """Raise a UserError unless images are uint8 ``[B, 3, H, W]`` with an origin each."""
    import torch

    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"Images are {images.dtype} {list(images.shape)}: stimuli need uint8 of [B, 3, H, W].")
    if len(images) != len(origins):
        raise UserError(f"{len(origins)} origins for {len(images)} images: give one each.")
