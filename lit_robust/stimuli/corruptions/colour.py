"""Brightness, contrast and saturation.

Brightness and saturation are defined in hue, saturation and value; with hue and one of the others held, every channel
changes by one factor, so no conversion is needed: ``x = V - (V - x)``, where ``V - x`` is proportional to S · V.
"""

import torch
from torch import Tensor

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes

BRIGHTNESS_GAIN = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST_FACTOR = (0.4, 0.3, 0.2, 0.1, 0.05)
SATURATION_FACTOR_AND_GAIN = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))


def brightness(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Raise the value (the largest channel) and keep hue and saturation.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: not used.
    """
    gain = 255 * BRIGHTNESS_GAIN[severity - 1]
    old = images.amax(dim=1, keepdim=True).float()
    # Black has no saturation and becomes grey; no factor does that, so it is added.
    black = old == 0
    factor = (old + gain).clamp_(max=255).div_(old.clamp(min=1))
    return to_bytes(images * factor + black * gain)


def saturate(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Change the saturation, ``(V - min) / V``, and keep hue and value.

    Grey has no hue; scikit-image calls that 0, which is red, and so does this: from severity 4 on grey turns reddish.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: not used.
    """
    factor, gain = SATURATION_FACTOR_AND_GAIN[severity - 1]
    clean = images.float()
    value = clean.amax(dim=1, keepdim=True)
    spread = value - clean.amin(dim=1, keepdim=True)
    new = (spread * factor).add_(value, alpha=gain).minimum(value)
    grey = spread == 0
    ratio = new / spread.clamp_(min=1)
    below = (value - clean).mul_(ratio)
    if gain:
        below[:, 1:] += grey * new
    return to_bytes(value - below)


def contrast(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Move every channel towards its mean over the image.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: not used.
    """
    factor = CONTRAST_FACTOR[severity - 1]
    count = images.shape[-2] * images.shape[-1]
    # Sums of integers are the same in any order, so the mean does not depend on the batch.
    mean = images.sum(dim=(2, 3), keepdim=True, dtype=torch.int64).double().div_(count)
    return to_bytes((images * factor).add_((mean * (1 - factor)).float()))
