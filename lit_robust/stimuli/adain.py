"""Style transfer by adaptive instance normalisation (Huang and Belongie 2017), with the public networks' form.

The networks are those of naoto0804/pytorch-AdaIN (``net.py``), which Stylized-ImageNet was made with: a VGG-19 whose
first layer does the preprocessing, with reflection padding, and its mirror image. Their files, ``vgg_normalised.pth``
and ``decoder.pth``, are state dicts of bare ``Sequential`` modules.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-5  # Added to each variance.
ENCODED = 31  # Children of the VGG up to relu4_1, whose output is the code.
# Channels of each stage of convolutions; a pooling stands between two.
VGG = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))
DECODER = ((256,), (256, 256, 256, 128), (128, 64), (64, 3))  # An upsampling stands between two.


def vgg() -> nn.Sequential:
    """Return the whole VGG-19, of which the first 31 children are the encoder; weights are random."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    channels = 3
    for place, stage in enumerate(VGG):
        if place:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        for width in stage:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


def decoder() -> nn.Sequential:
    """Return the decoder; weights are random."""
    layers: list[nn.Module] = []
    channels = 512
    for place, stage in enumerate(DECODER):
        if place:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        for width in stage:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers[:-1])  # Pixels may be of any sign.


def statistics(code: Tensor) -> Tensor:
    """Return mean and standard deviation of each channel over its places.

    The variance is the unbiased one, with 1e-5 added.

    Args:
        code: ``[B, C, h, w]``.

    Returns:
        ``[B, 2, C]``.
    """
    flat = code.flatten(2)
    return torch.stack([flat.mean(2), (flat.var(2) + EPSILON).sqrt()], 1)


def renormalised(code: Tensor, style: Tensor) -> Tensor:
    """Return a code with another's statistics.

    Args:
        code: ``[B, C, h, w]``.
        style: ``[B, 2, C]``, what `statistics` gives of the other's.

    Returns:
        ``[B, C, h, w]``.
    """
    own, wanted = (each[:, :, :, None, None] for each in (statistics(code), style))
    return wanted[:, 1] * (code - own[:, 0]) / own[:, 1] + wanted[:, 0]


class AdaIn(nn.Module):
    """Encoder and decoder.

    Args:
        vgg: as `vgg` builds it; its first 31 children are taken.
        decoder: as `decoder` builds it.
    """

    def __init__(self, vgg: nn.Sequential, decoder: nn.Sequential) -> None:
        super().__init__()
        self.encoder = vgg[:ENCODED]
        self.decoder = decoder

    def style(self, pictures: Tensor) -> Tensor:
        """Return the statistics of styles.

        Args:
            pictures: float ``[B, 3, H, W]`` in [0, 1].

        Returns:
            ``[B, 2, 512]``.
        """
        return statistics(self.encoder(pictures))

    def forward(self, contents: Tensor, styles: Tensor, alpha: float = 1.0) -> Tensor:
        """Return contents in other styles.

        Args:
            contents: float ``[B, 3, H, W]`` in [0, 1].
            styles: ``[B, 2, 512]``.
            alpha: 1 for the style alone, 0 for the decoder's image of the content.

        Returns:
            ``[B, 3, H, W]`` in [0, 1].
        """
        code = self.encoder(contents)
        mixed = alpha * renormalised(code, styles) + (1 - alpha) * code
        # Sides that 8 does not divide come back larger.
        made: Tensor = self.decoder(mixed)[:, :, : contents.shape[2], : contents.shape[3]]
        return made.clamp(0, 1)
