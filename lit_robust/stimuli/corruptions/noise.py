"""Noise: Gaussian, shot, impulse and speckle."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lit_robust.stimuli.corruptions.shared import ROUNDING, Draws, to_bytes

GAUSSIAN_DEVIATION = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT_PHOTONS = (60, 25, 12, 5, 3)
IMPULSE_SHARE = (0.03, 0.06, 0.09, 0.17, 0.27)
SPECKLE_DEVIATION = (0.15, 0.2, 0.35, 0.45, 0.6)

LEVELS = 2**16


def gaussian_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Add normal noise to every value; its deviation is a share of white."""
    noise = draws.normal(images.shape[1:], 0.0, 255 * GAUSSIAN_DEVIATION[severity - 1])
    return to_bytes(noise.add_(images))


def speckle_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Multiply every value by a normal number around 1."""
    factor = draws.normal(images.shape[1:], 1.0, SPECKLE_DEVIATION[severity - 1])
    return to_bytes(factor.mul_(images))


def impulse_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Turn a share of the values, each channel for itself, to 0 or 255 with equal chances (scikit-image's ``s&p``)."""
    word = draws.integers(images.shape[1:], 2**24)
    half = round(2**23 * IMPULSE_SHARE[severity - 1])
    # The sign of a difference, shifted down, is a mask of ones or zeros: cheaper than two comparisons.
    black = word.sub(half).bitwise_right_shift_(31)
    white = word.neg_().add_(2**24 - half - 1).bitwise_right_shift_(31)
    return white.bitwise_or_(images).bitwise_and_(black.bitwise_not_()).to(torch.uint8)


@lru_cache(maxsize=5)
def _shot_table(photons: int, device: torch.device) -> Tensor:
    """Return ``[256 · LEVELS]`` uint8: for every pixel value the noisy value at each of ``LEVELS`` even quantiles."""
    quantiles = (np.arange(LEVELS) + 0.5) / LEVELS
    # 80 beyond the mean of 60 is ten deviations: less than one quantile for every pixel value.
    counts = np.arange(photons + 80)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    values = np.minimum(np.floor(np.minimum(counts / photons, 1.0) * 255 + ROUNDING), 255).astype(np.uint8)
    table = np.zeros((256, LEVELS), dtype=np.uint8)
    for pixel in range(1, 256):
        mean = pixel / 255 * photons
        cumulative = np.cumsum(np.exp(counts * np.log(mean) - mean - log_factorial))
        drawn = np.searchsorted(cumulative, quantiles).clip(max=len(counts) - 1)
        table[pixel] = values[drawn]
    return torch.from_numpy(table.reshape(-1)).to(device)


def shot_noise(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Replace every value by a Poisson number of photons with that mean.

    The Poisson numbers come from the inverse of their distribution at 65,536 even quantiles: the chance of each count
    is right to 2**-16. There are only 256 means, so this is a look-up.

    The photons at white fall with the severity.
    """
    table = _shot_table(SHOT_PHOTONS[severity - 1], images.device)
    place = draws.integers(images.shape[1:], LEVELS).add_(images.to(torch.int32).mul_(LEVELS))
    return table.index_select(0, place.view(-1)).view_as(images)
