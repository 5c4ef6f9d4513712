"""The gradient of a loss at images, whatever precision the network computes in."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_robust.attacks.attack import Model
from lit_robust.attacks.norms import to_unit_size
from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of

LogitLoss = Callable[[Tensor], Tensor]
"""Logits ``[B, num_classes]`` to one loss an image ``[B]``, an image's loss depending on its own logits alone."""

# What an image's largest logit gradient is made before it goes back through the network. Of a sure network it is 1e-8
# and less, which fp16 rounds to 0. From 2 ** 10 there are factors of 64 up to fp16's largest number, 65504, and of
# 1e7 down to its smallest normal one, 6e-5.
HIGHEST = 2.0**10


class Slope(NamedTuple):
    """What a forward and a backward pass tell of images.

    Attributes:
        losses: float32 ``[B]``.
        gradient: float32 ``[B, C, H, W]``, of each image its own loss's.
        logits: float32 ``[B, num_classes]``.
        vanished: bool ``[B]``, true where the gradient is zero or not finite, and so leads nowhere.
    """

    losses: Tensor
    gradient: Tensor
    logits: Tensor
    vanished: Tensor


def slope(model: Model, loss: LogitLoss, images: Tensor) -> Slope:
    """Run the network forward and backward, once each.

    Every image's gradient travels back at a size that fp16 holds and returns to its own size after that. The factor is
    a power of two, so without rounding to a narrower type nothing changes. What overflows fp16 on the way all the same
    counts as no slope; under any other type it stays infinite or undefined, for the verdict to refuse.

    Gradients must be enabled, and ``images`` must not be inference tensors.

    Args:
        model: float images in [0, 1] to logits.
        loss: of the logits, in fp32.
        images: float32 ``[B, C, H, W]``.

    Raises:
        UserError: the loss does not depend on the images through autograd.
    """
    images = images.detach().requires_grad_(True)
    logits = logits_of(model(images)).float()
    losses = loss(logits)
    gradient: Tensor | None = None
    if losses.requires_grad:
        (outer,) = torch.autograd.grad(losses.sum(), logits)
        factor = HIGHEST * to_unit_size(outer)
        (gradient,) = torch.autograd.grad(logits, images, outer * factor, allow_unused=True)
    if gradient is None:
        raise UserError(
            "The model's logits carry no gradient to the images: remove no_grad, inference_mode or detach from its "
            "forward, or attack a differentiable stand-in."
        )
    if _computes_in_fp16(images.device.type):
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    gradient = gradient / factor.view(-1, 1, 1, 1)
    largest = gradient.abs().amax((1, 2, 3))
    return Slope(losses.detach(), gradient, logits.detach(), ~((largest > 0) & largest.isfinite()))


def _computes_in_fp16(device_type: str) -> bool:
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
