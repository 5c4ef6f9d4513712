"""Where in an image a network sees a class: Grad-CAM and integrated gradients, computed by Captum.

Hendrycks et al. 2021, Figure 6, has Grad-CAM (Selvaraju et al. 2017) beside natural adversarial examples.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks.attack import check_count, check_range, frozen
from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision

Method = Literal["grad-cam", "integrated-gradients"]


def _captum() -> Any:
    try:
        from captum import attr
    except ImportError as error:
        raise UserError(
            "Attributions need Captum: install `lit-robust[attribution]`, or the package captum."
        ) from error
    return attr


def grad_cam(network: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return Grad-CAM's maps at the size of the images, float32 ``[B, H, W]``, 0 and above.

    Args:
        network: images in [0, 1] to logits; left as it was.
        layer: whose output maps are weighed, such as a convolutional network's last block.
        images: float32 ``[B, C, H, W]`` in [0, 1].
        classes: int64 ``[B]``, the class whose evidence is shown.

    Raises:
        UserError: Captum is not installed, or the layer gives no maps.
    """
    check_range(images)
    with torch.inference_mode(False), torch.enable_grad(), frozen(network), full_precision(images.device.type):
        found = (
            _captum()
            .LayerGradCam(network, layer)
            .attribute(images.clone().requires_grad_(True), classes, relu_attributions=True)
        )
    if not isinstance(found, Tensor) or found.ndim != 4:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"Grad-CAM needs a layer of maps, and this one gives {shape}: name a convolutional one.")
    return F.interpolate(found.detach(), images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def integrated_gradients(
    network: nn.Module, images: Tensor, classes: Tensor, steps: int = 50, baseline: float = 0.0
) -> Tensor:
    """Return each value's share of a class's logit, float32 ``[B, C, H, W]``; an image's sum is the logit's gain.

    Args:
        network: images in [0, 1] to logits; left as it was.
        images: float32 ``[B, C, H, W]`` in [0, 1].
        classes: int64 ``[B]``, the class.
        steps: points of the integral (Gauss-Legendre).
        baseline: grey of the image that the path begins at, in [0, 1]; 0 is black.

    Raises:
        UserError: Captum is not installed.
    """
    check_count("steps", steps, 1)
    check_range(images)
    with torch.inference_mode(False), torch.enable_grad(), frozen(network), full_precision(images.device.type):
        found: Tensor = (
            _captum()
            .IntegratedGradients(network)
            .attribute(
                images.clone().requires_grad_(True), baseline, classes, n_steps=steps, internal_batch_size=len(images)
            )
        )
    return found.detach()
