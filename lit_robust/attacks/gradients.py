"""The gradient of a loss at images."""

import torch
from torch import Tensor

from lit_robust.errors import UserError


def image_gradient(losses: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of the sum of ``losses``, float32 ``[B, C, H, W]``; of each image its own loss's.

    Args:
        losses: ``[B]``, an image's depending on that image alone.
        images: ``[B, C, H, W]`` that the losses were computed from and that require a gradient.

    Raises:
        UserError: the losses do not depend on the images through autograd.
    """
    gradient: Tensor | None = None
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), images, allow_unused=True)
    if gradient is None:
        raise UserError(
            "The model's logits carry no gradient to the images: remove no_grad, inference_mode or detach from its "
            "forward, or attack a differentiable stand-in."
        )
    return gradient
