"""Images mixed in pairs, and their labels with them: Mixup, CutMix and Moment Exchange."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.models import Classifier
from lit_robust.models.taps import changed


@dataclass(frozen=True)
class Mixed:
    """What a network says of mixed images, and which labels are right.

    Attributes:
        logits: ``[B, num_classes]`` of the mixed images.
        partner: int64 ``[B]``, the place in the batch of the image that each was mixed with.
        share: how much of the label is the image's own, 0 to 1; the rest is its partner's.
    """

    logits: Tensor
    partner: Tensor
    share: float


class Mixing(ABC):
    """A way to mix the images of a batch in pairs; it holds settings only."""

    @abstractmethod
    def __call__(self, model: Classifier, images: Tensor, random: np.random.Generator) -> Mixed:
        """Mix a batch with itself in another order, and put it through the network.

        Args:
            model: the network, in train mode.
            images: float ``[B, 3, H, W]`` in [0, 1]; left as they are.
            random: source of every draw.
        """


@dataclass(frozen=True)
class Mixup(Mixing):
    """Weighted means of two images (Zhang et al. 2018); one weight a batch, as in facebookresearch/mixup-cifar10.

    Attributes:
        alpha: the weight follows Beta(alpha, alpha): near 0 images hardly mix, 1 is uniform. The paper finds 0.1 to
            0.4 best on ImageNet.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, model: Classifier, images: Tensor, random: np.random.Generator) -> Mixed:
        """Return the logits of the weighted means."""
        share = float(random.beta(self.alpha, self.alpha))
        partner = _partners(images, random)
        return Mixed(model(share * images + (1 - share) * images[partner]), partner, share)


@dataclass(frozen=True)
class CutMix(Mixing):
    """A box of each image replaced by the same box of another (Yun et al. 2019; clovaai/CutMix-PyTorch).

    One box a batch. The labels' shares are those of the pixels, after the box was cut off at the image's border.

    Attributes:
        alpha: 1 minus the box's share of the area follows Beta(alpha, alpha); the ImageNet setting is 1, uniform.
        probability: share of the batches that are mixed, 0 to 1; the ImageNet setting is 1.
    """

    alpha: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        _check_probability(self.probability)

    def __call__(self, model: Classifier, images: Tensor, random: np.random.Generator) -> Mixed:
        """Return the logits of the patched images."""
        if random.random() >= self.probability:
            return _unmixed(model, images)
        height, width = images.shape[2:]
        top, bottom, left, right = random_patch(height, width, float(random.beta(self.alpha, self.alpha)), random)
        partner = _partners(images, random)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return Mixed(model(mixed), partner, share)


@dataclass(frozen=True)
class MoEx(Mixing):
    """Moment Exchange: one image's features with the mean and spread of another's (Li et al. 2021; Boyiliee/MoEx).

    At every place of the feature map, mean and standard deviation are taken over the channels (positional norm).

    Attributes:
        layer: dotted name of the layer whose output is changed; the ImageNet setting is behind the stem of a ResNet,
            which torchvision and timm call ``maxpool``.
        share: how much of the label is that of the normalised features, 0 to 1; the ImageNet setting is 0.9.
        probability: share of the batches that are mixed, 0 to 1; the ImageNet setting is 1.
    """

    layer: str = "maxpool"
    share: float = 0.9
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if not 0 <= self.share <= 1:
            raise UserError(f"MoEx share is {self.share}: give 0 to 1.")

    def __call__(self, model: Classifier, images: Tensor, random: np.random.Generator) -> Mixed:
        """Return the logits of the images with exchanged moments."""
        if random.random() >= self.probability:
            return _unmixed(model, images)
        partner = _partners(images, random)

        def exchange(output: Tensor) -> Tensor:
            if output.ndim != 4:
                raise UserError(
                    f"MoEx layer {self.layer!r} gives {list(output.shape)}: name one whose output is a feature map, "
                    "[batch, channels, height, width]."
                )
            return exchange_moments(output, partner)

        with changed(model, self.layer, exchange):
            return Mixed(model(images), partner, self.share)


def exchange_moments(features: Tensor, partner: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Give each image's features the mean and spread over the channels that its partner's have, place by place.

    Args:
        features: ``[B, C, H, W]``.
        partner: int64 ``[B]``, place in the batch.
        epsilon: added to variances, which are the unbiased ones.
    """
    # In fp32: a bf16 variance of near-constant channels would be noise.
    values = features.float()
    variance, mean = torch.var_mean(values, dim=1, keepdim=True)
    spread = (variance + epsilon).sqrt()
    exchanged = (values - mean) * (spread[partner] / spread) + mean[partner]
    return exchanged.to(features.dtype)


def random_patch(height: int, width: int, kept: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box of the image's aspect whose centre is anywhere in the image, cut off at the border.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        kept: share of the area, 0 to 1, that a box wholly inside would leave.
        random: source of the centre.

    Returns:
        Top, bottom, left and right in pixels.
    """
    side = sqrt(1 - kept)
    down, across = int(height * side) // 2, int(width * side) // 2
    row, column = int(random.integers(height)), int(random.integers(width))
    return max(row - down, 0), min(row + down, height), max(column - across, 0), min(column + across, width)


def _partners(images: Tensor, random: np.random.Generator) -> Tensor:
    return torch.from_numpy(random.permutation(len(images))).to(images.device)


def _unmixed(model: Classifier, images: Tensor) -> Mixed:
    return Mixed(model(images), torch.arange(len(images), device=images.device), 1.0)


def _check_alpha(alpha: float) -> None:
    if not alpha > 0:
        raise UserError(f"alpha is {alpha}: give a number above 0; 1 is uniform.")


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise UserError(f"probability is {probability}: give 0 to 1.")
