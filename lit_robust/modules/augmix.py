"""AugMix: chains of augmentations mixed, and one answer asked for on all views (Hendrycks et al. 2020).

None of its nine operations overlaps with ImageNet-C. Each does what Pillow does in google-research/augmix
(``augmentations.py``), to within one of 255 levels, on whole batches and on any device. Pixels are floats that hold
whole levels, 0 to 255, as an 8-bit image would.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.models import Network
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation

AUTOCONTRAST, EQUALIZE, POSTERIZE, SOLARIZE = range(4)
ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(4, 9)
OPERATIONS = 9
NOTHING = -1
DEEPEST = 3  # Operations in the longest chain that is drawn.

Amounts = NDArray[np.float64]
Operations = NDArray[np.int64]


class Change(NamedTuple):
    """One operation on some images of a batch, with all it needs on their device.

    Attributes:
        function: pixels float32 ``[N, 3, H, W]`` and settings to changed pixels.
        rows: int64 ``[N]``, which images of the batch.
        settings: float32 ``[N, 8]``: the width of a posterised level, the threshold of solarisation, and an affine map.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    rows: Tensor
    settings: Tensor


def plan(operations: Operations, amounts: Amounts, images: Tensor) -> list[list[Change]]:
    """Return the changes of each step of a batch; what they need is copied to the images' device in two parts.

    Args:
        operations: ``[steps, B]``, each one of the constants above.
        amounts: ``[steps, B]``, -10 to 10: how strong; the sign tells geometric operations their direction.
        images: ``[B, 3, H, W]``, of which shape and device are used.
    """
    height, width = images.shape[2:]
    strength = np.abs(amounts)
    # Images of one function lie together; `NOTHING` comes first.
    kinds = np.minimum(operations, ROTATE)
    order = np.argsort(kinds, axis=1, kind="stable")
    bounds = [np.searchsorted(np.sort(row), range(len(FUNCTIONS) + 1)).tolist() for row in kinds]
    levels = 2 ** (8 - np.maximum(4 - np.floor(strength * 4 / 10), 1))
    thresholds = 256 - np.floor(strength * 256 / 10)
    maps = matrices(operations, amounts, height, width).reshape(*operations.shape, 6)
    settings = np.concatenate((levels[..., None], thresholds[..., None], maps), axis=2).astype(np.float32)
    settings_there = torch.from_numpy(np.take_along_axis(settings, order[..., None], 1)).to(images.device)
    rows_there = torch.from_numpy(order).to(images.device)
    return [
        [
            Change(function, rows_there[step, first:end], settings_there[step, first:end])
            for function, first, end in zip(FUNCTIONS, ends[:-1], ends[1:], strict=True)
            if end > first
        ]
        for step, ends in enumerate(bounds)
    ]


def apply(pixels: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return each image after an operation of its own.

    Args:
        pixels: float32 ``[B, 3, H, W]``, whole levels 0 to 255; left as they are.
        changes: a step of the plan.
    """
    result = pixels.clone()
    for function, rows, settings in changes:
        result[rows] = function(pixels[rows], settings)
    return result


def autocontrast(pixels: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel of ``[B, 3, H, W]`` to 0 to 255; a channel of one level stays."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    stretched = ((pixels - low) * (255 / (high - low).clamp(min=1))).round()
    return torch.where(high > low, stretched, pixels)


def equalize(pixels: Tensor, _: Tensor) -> Tensor:
    """Give each channel of ``[B, 3, H, W]`` a histogram as flat as a table of levels can make it."""
    levels = pixels.flatten(2).flatten(0, 1).long()
    counts = torch.zeros(len(levels), 256, device=pixels.device).scatter_add_(
        1, levels, torch.ones_like(levels).float()
    )
    brightest = counts.gather(1, levels.amax(1, keepdim=True))
    step = torch.div(levels.shape[1] - brightest, 255, rounding_mode="floor")
    below = counts.cumsum(1) - counts
    table = torch.div(torch.div(step, 2, rounding_mode="floor") + below, step.clamp(min=1), rounding_mode="floor")
    flat = table.clamp(max=255).gather(1, levels)
    # A step of 0 means that almost all pixels have one level: they stay.
    return torch.where(step > 0, flat, levels.float()).view(pixels.shape)


def posterize(pixels: Tensor, settings: Tensor) -> Tensor:
    """Cut each level down to a multiple of the first of ``settings``, ``[B, 8]``, a power of two."""
    width = settings[:, 0].view(-1, 1, 1, 1)
    return torch.div(pixels, width, rounding_mode="floor") * width


def solarize(pixels: Tensor, settings: Tensor) -> Tensor:
    """Turn levels at or above the second of ``settings``, ``[B, 8]``, into their negative."""
    return torch.where(pixels < settings[:, 1].view(-1, 1, 1, 1), pixels, 255 - pixels)


def warp(pixels: Tensor, settings: Tensor) -> Tensor:
    """Move pixels by an affine map, bilinear; what comes from outside the image is black.

    Args:
        pixels: float32 ``[B, 3, H, W]``, levels 0 to 255.
        settings: ``[B, 8]``; the last six are a ``[2, 3]`` matrix from a place (x, y, 1) in the result to one in
            ``pixels``. A pixel's centre is at 0.5.
    """
    count, _, height, width = pixels.shape
    x = torch.arange(width, device=pixels.device) + 0.5
    y = torch.arange(height, device=pixels.device)[:, None] + 0.5
    a = settings[:, 2:].reshape(count, 2, 3, 1, 1)
    # Written out, as under autocast a matrix product would come out in 16 bits.
    from_x, from_y = (a[:, row, 0] * x + a[:, row, 1] * y + a[:, row, 2] for row in range(2))
    grid = torch.stack((from_x * (2 / width) - 1, from_y * (2 / height) - 1), dim=-1)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return moved.round() * inside[:, None]


def matrices(operations: Operations, amounts: Amounts, height: int, width: int) -> Amounts:
    """Return the affine maps ``[..., 2, 3]`` of geometric operations; the identity for all others.

    At an amount of 10 these are 30 degrees, a shear of 0.3, and a shift by a third of the image.

    Args:
        operations: of any shape.
        amounts: of the same shape, -10 to 10.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    result = np.zeros((*operations.shape, 2, 3))
    result[..., 0, 0] = result[..., 1, 1] = 1.0
    shear = 0.3 / 10 * amounts
    result[..., 0, 1] = np.where(operations == SHEAR_X, shear, 0)
    result[..., 1, 0] = np.where(operations == SHEAR_Y, shear, 0)
    result[..., 0, 2] = np.where(operations == TRANSLATE_X, np.trunc(amounts * width / 30), 0)
    result[..., 1, 2] = np.where(operations == TRANSLATE_Y, np.trunc(amounts * height / 30), 0)
    turned = operations == ROTATE
    angle = np.deg2rad(np.trunc(amounts[turned] * 30 / 10))
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    result[turned, 0] = np.stack((cosine, -sine, x - cosine * x + sine * y), axis=1)
    result[turned, 1] = np.stack((sine, cosine, y - sine * x - cosine * y), axis=1)
    return result


# By operation; the geometric ones are all the last.
FUNCTIONS = (autocontrast, equalize, posterize, solarize, warp)


@dataclass(frozen=True)
class AugMix:
    """How views of an image are made, and how much their agreement counts.

    The defaults are those of google-research/augmix for ImageNet (``imagenet.py``).

    Attributes:
        severity: strength of an operation is uniform from 0.1 to this, of 10; 1 or more, 10 at most.
        width: chains that are mixed.
        depth: operations in a chain; null draws 1 to 3.
        alpha: chains are weighted by Dirichlet(alpha, ...), and their mixture against the image by Beta(alpha, alpha).
        consistency: weight of the Jensen-Shannon divergence of the three answers, added to the cross-entropy.
    """

    severity: float = 1.0
    width: int = 3
    depth: int | None = None
    alpha: float = 1.0
    consistency: float = 12.0

    def __post_init__(self) -> None:
        if not 1 <= self.severity <= 10:
            raise UserError(f"AugMix severity is {self.severity}: give 1 to 10.")
        if self.width < 1 or (self.depth is not None and self.depth < 1):
            raise UserError(f"AugMix width is {self.width} and depth {self.depth}: give 1 or more; depth may be null.")
        if not self.alpha > 0 or self.consistency < 0:
            raise UserError(
                f"AugMix alpha is {self.alpha} and consistency {self.consistency}: give above 0, and 0 or more."
            )

    def view(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return one augmented view of each image, float32 ``[B, 3, H, W]`` in [0, 1].

        Args:
            images: float ``[B, 3, H, W]`` in [0, 1].
            random: source of every draw.
        """
        count, deepest = len(images), self.depth or DEEPEST
        weights = random.dirichlet([self.alpha] * self.width, count)
        blend = random.beta(self.alpha, self.alpha, (count, 1))
        shape = (self.width, deepest, count)
        operations = random.integers(OPERATIONS, size=shape)
        if self.depth is None:
            depths = random.integers(1, DEEPEST + 1, (self.width, 1, count))
            operations[np.arange(deepest)[:, None] >= depths] = NOTHING
        amounts = random.uniform(0.1, self.severity, shape) * random.choice([-1.0, 1.0], shape)
        shares = torch.from_numpy(np.hstack((1 - blend, blend * weights)).T.astype(np.float32)).to(images.device)
        shares = shares.view(self.width + 1, count, 1, 1, 1)
        pixels = (images.float() * 255).round()
        mixed = shares[0] * pixels
        every_step = (self.width * deepest, count)
        steps = plan(operations.reshape(every_step), amounts.reshape(every_step), images)
        for chain in range(self.width):
            changed = pixels
            for step in range(deepest):
                changed = apply(changed, steps[chain * deepest + step])
            mixed = mixed + shares[chain + 1] * changed
        return (mixed / 255).clamp(0, 1)


class AugMixModule(ClassifierModule):
    """A classifier trained on clean images, that answers the same on two augmented views of each.

    The three views go through the network as one batch, so batch norm sees all of them; the cross-entropy is the clean
    view's, as in google-research/augmix. Views are made on the training device.

    Args:
        augmix: how views are made, and how much their agreement counts.
    """

    def __init__(
        self, network: Network = Network(), optimisation: Optimisation = Optimisation(), augmix: AugMix = AugMix()
    ) -> None:
        super().__init__(network, optimisation)
        self.augmix = augmix
        self.keep_hyperparameters(network=network, optimisation=optimisation, augmix=augmix)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the clean view's cross-entropy and the weighted divergence of the three answers."""
        seed = stream_seed(run_seed(), "augmix", self.current_epoch, batch_idx, self.global_rank)
        random = np.random.Generator(np.random.PCG64(seed))
        views = [batch.image, self.augmix.view(batch.image, random), self.augmix.view(batch.image, random)]
        answers = self.model(torch.cat(views)).view(len(views), len(batch), -1)
        divergence = jensen_shannon(answers)
        loss = self.loss(answers[0], batch.label) + self.augmix.consistency * divergence
        self.log("train/divergence", divergence.detach(), batch_size=len(batch))
        self.log_training(loss, answers[0], batch.label)
        return loss


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return how far several answers to the same images differ, in nats: 0 to ln(views), the batch's mean.

    It is the mean Kullback-Leibler divergence of the answers from their mean, computed from logarithms; the public code
    bounds the mean's probabilities by 1e-7 from below instead.

    Args:
        logits: ``[views, B, num_classes]``.
    """
    logs = logits.float().log_softmax(-1)
    mixture = logs.logsumexp(0) - math.log(len(logs))
    return (logs.exp() * (logs - mixture)).sum(-1).mean()
