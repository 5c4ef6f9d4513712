"""Stylised sets: each image in the style of a picture, as Stylized-ImageNet (Geirhos et al. 2019)."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import DataError, UserError, check_choice
from lit_robust.core.seeds import key_seed
from lit_robust.data.packing.encode import is_picture
from lit_robust.shards import decode_rgb
from lit_robust.stimuli.stimulus import Origin, Stimulus, check_images, check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from lit_robust.data.packing.transfers import FeedForward

Choice = Literal["key", "stylized-imagenet"]
PUBLISHED_SEED = 49809  # Of rgeirhos/Stylized-ImageNet, ``code/stylize_imagenet.py``.
BLOCK = 1 << 21  # Of the published choice, drawn at once: more than all of ImageNet.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")


def published_styles(count: int, styles: int) -> NDArray[np.int64]:
    """Return the style of each image as Stylized-ImageNet's code chooses it.

    It draws one after another for ImageNet's validation images in the order of their folders and names, then for the
    training images.

    Args:
        count: images.
        styles: pictures; there are 79,395 in the published set.

    >>> published_styles(5, 79395).tolist()
    [75686, 79149, 64876, 10784, 49078]
    """
    return np.random.RandomState(PUBLISHED_SEED).randint(0, styles, size=count).astype(np.int64)


_published = lru_cache(2)(published_styles)


@dataclass(frozen=True, kw_only=True)
class FeedForwardStyle(Stimulus):
    """What stylising by networks has in common: which picture gives an image its style.

    Attributes:
        styles: folder of pictures, at any depth, such as Painter by Numbers
        style_size: their shorter side, pixels, after which the central square is taken
        choice: key: drawn from the seed, by the image's key; stylized-imagenet: the published choice, which with the
            79,395 published pictures gives each image the published style
        first: for the published choice, how many images come before these: 0 for validation images, 50000 for training
        seed: of the choice by key
        device: where to compute: cpu or cuda
    """

    styles: Path
    style_size: int = 224
    choice: Choice = "key"
    first: int = 0
    seed: int = 0
    device: str = "cpu"
    ranked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("choice", self.choice, ("key", "stylized-imagenet"))
        check_seed(self.seed)
        if self.style_size < 16 or self.first < 0:
            raise UserError(
                f"style_size is {self.style_size} and first {self.first}: give at least 16 px, and 0 or more images."
            )

    @property
    @abstractmethod
    def networks(self) -> "FeedForward":
        """What transfers the style."""

    @cached_property
    def pictures(self) -> list[Path]:
        """The pictures, in the order of their names."""
        if not self.styles.is_dir():
            raise UserError(f"There is no folder {self.styles}: name one with pictures whose styles are taken.")
        found = sorted(file for file in self.styles.rglob("*") if file.is_file() and is_picture(file.name))
        if not found:
            raise UserError(f"The folder {self.styles} has no pictures: name one with pictures whose styles are taken.")
        return found

    @cached_property
    def _known(self) -> "dict[int, Tensor]":
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave networks and styles to each process."""
        return {name: value for name, value in self.__dict__.items() if name in self.__dataclass_fields__}

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Stimulus.settings`; ``styles`` is a digest over names and sizes of the pictures."""
        digest = hashlib.sha256()
        for file in self.pictures:
            digest.update(f"{file.relative_to(self.styles).as_posix()} {file.stat().st_size}\n".encode())
        return {
            **self.networks.described,
            "styles": digest.hexdigest(),
            "pictures": len(self.pictures),
            "style_size": self.style_size,
            "choice": self.choice,
            **({"first": self.first} if self.choice == "stylized-imagenet" else {"seed": self.seed}),
        }

    def chosen(self, origin: Origin) -> int:
        """Return the number of the picture that gives an image its style."""
        if self.choice == "stylized-imagenet":
            place = self.first + origin.rank
            drawn = _published((place // BLOCK + 1) * BLOCK, len(self.pictures))
            return int(drawn[place])
        random = np.random.Generator(np.random.PCG64(key_seed(self.seed, "style", origin.key)))
        return int(random.integers(len(self.pictures)))

    def style(self, number: int) -> "Tensor":
        """Return the style of a picture, computed once, alone: so it does not depend on the batch it is first used in.

        Each process keeps the styles that it met, a few kilobytes each, and none is kept on disk: a file of them would
        be believed only after all pictures had been read and their digests compared, which is much of the work that it
        saves. One process that makes Stylized-ImageNet's training images computes a style for every 16 of them.

        Raises:
            DataError: the picture cannot be read.
        """
        if number not in self._known:
            file = self.pictures[number]
            try:
                pixels = decode_rgb(file.read_bytes(), file, FORMATS)
            except OSError as error:
                raise DataError(f"{file} cannot be read ({error.strerror}): replace or remove it.") from error
            from lit_robust.data.loading.transforms import EvaluationCrop

            picture = EvaluationCrop(self.style_size, self.style_size)(pixels)
            self._known[number] = self.networks.style(picture[None])[0]
        return self._known[number]

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor]":
        """Stylise each image; see `Stimulus.make`."""
        import torch

        from lit_robust.core.precision import full_precision

        check_images(images, origins)
        if not origins:
            return []
        with torch.inference_mode(), full_precision(torch.device(self.device).type):
            styles = torch.stack([self.style(self.chosen(origin)) for origin in origins])
            return list(self.networks.apply(images, styles))


@dataclass(frozen=True, kw_only=True)
class Stylised(FeedForwardStyle):
    """An image in the style of a picture, by AdaIN, as Stylized-ImageNet was made.

    The networks' files come from naoto0804/pytorch-AdaIN; nothing in them is run.

    Attributes:
        styles: folder of pictures, at any depth, such as Painter by Numbers
        vgg: file vgg_normalised.pth
        decoder: file decoder.pth
        alpha: share of the style: 1 for all of it, as published; 0 for none
        style_size: the pictures' shorter side, pixels, after which the central square is taken
        choice: key: drawn from the seed, by the image's key; stylized-imagenet: the published choice, which with the
            79,395 published pictures gives each image the published style
        first: for the published choice, how many images come before these: 0 for validation images, 50000 for training
        seed: of the choice by key
        device: where to compute: cpu or cuda
    """

    vgg: Path
    decoder: Path
    alpha: float = 1.0
    kind: ClassVar[str] = "stylised"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha is {self.alpha}: give 0 to 1.")

    @cached_property
    def networks(self) -> "FeedForward":
        """Encoder and decoder."""
        from lit_robust.data.packing.transfers import AdaInNetworks

        return AdaInNetworks(vgg=self.vgg, decoder=self.decoder, alpha=self.alpha, device=self.device)


@dataclass(frozen=True, kw_only=True)
class StylisedByMagenta(FeedForwardStyle):
    """An image in the style of a picture, by Magenta's networks, which need no files (extra `stimuli`).

    Attributes:
        styles: folder of pictures, at any depth, such as Painter by Numbers
        style_size: their shorter side, pixels, after which the central square is taken and brought to 256
        choice: key: drawn from the seed, by the image's key; stylized-imagenet: in the order of that set's code
        first: for the published choice, how many images come before these: 0 for validation images, 50000 for training
        seed: of the choice by key
        device: where to compute: cpu or cuda
    """

    kind: ClassVar[str] = "stylised-magenta"

    @cached_property
    def networks(self) -> "FeedForward":
        """Predictor and transformer."""
        from lit_robust.data.packing.transfers import MagentaNetworks

        return MagentaNetworks(device=self.device)
