"""Ways to give an image the texture of another, with the networks that they need."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_robust.core.seeds import key_seed
from lit_robust.models import Network, build_classifier
from lit_robust.models.network import Classifier
from lit_robust.models.taps import outputs
from lit_robust.models.weights import weights_digest
from lit_robust.stimuli.gatys import Gatys


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
        """Return uint8 images; see `Transfer.transfer`."""
        seeds = [key_seed(self.settings.seed, "gatys", key) for key in keys]
        made, _ = self.settings.transfer(
            lambda images: outputs(self.classifier, images, self.settings.layers),
            contents.to(self.device) / 255,
            textures.to(self.device) / 255,
            seeds,
        )
        return to_uint8(made)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
