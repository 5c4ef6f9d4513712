"""Where in an image a network sees a class: Grad-CAM and integrated gradients, computed by Captum.

Hendrycks et al. 2021, Figure 6, has Grad-CAM (Selvaraju et al. 2017) of natural adversarial examples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lit_robust.analysis.outcome import Outcome
from lit_robust.analysis.pictures import heat, labelled_grid
from lit_robust.attacks.attack import check_range, frozen
from lit_robust.core.errors import UserError, check_count
from lit_robust.core.precision import full_precision
from lit_robust.core.results import Result
from lit_robust.metrics.intervals import mean_of


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


def attribution_study(
    network: nn.Module,
    layer: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    batch: int,
    dataset: str,
    protocol: Mapping[str, Any],
) -> Outcome:
    """Attribute the true class's logit, and measure how much of the image it takes.

    ``concentration`` is the share of an attribution's absolute sum that lies in the tenth of the pixels with most of
    it: 0.1 where it is spread evenly, 1 where nothing is elsewhere.

    Args:
        network: images in [0, 1] to logits, in the device's memory.
        layer: of maps, for Grad-CAM; None to leave it out.
        images: float32 ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``.
        names: what to call each image's class.
        batch: images at once.
        dataset: name of the set.
        protocol: which network and images these are.
    """
    device = next(network.parameters()).device
    maps: dict[str, list[Tensor]] = {}
    for rows in tqdm(torch.split(torch.arange(len(images)), batch), "attribution", leave=False):
        some, classes = images[rows].to(device), labels[rows].to(device)
        found = {"integrated-gradients": integrated_gradients(network, some, classes).abs().sum(1)}
        if layer is not None:
            found["grad-cam"] = grad_cam(network, layer, some, classes)
        for name, values in found.items():
            maps.setdefault(name, []).append(values.cpu())
    results, rows_shown, arrays = [], {"image": images[:8]}, {}
    for name, parts in maps.items():
        arrays[name] = torch.cat(parts)
        shares = concentration(arrays[name])
        estimate, empty = mean_of(shares), int(shares.isnan().sum())
        rows_shown[name] = heat(arrays[name][:8])
        results.append(
            Result(
                dataset=dataset,
                metric=f"concentration_{name}",
                value=estimate.value,
                unit="fraction",
                count=estimate.count,
                protocol={**protocol, "method": name, "class": "true"},
                interval=estimate.interval,
                facets={"measure": "concentration", "method": name},
                warnings=(f"{empty} of {len(shares)} images have no evidence at all.",) if empty else (),
            )
        )
    return Outcome(
        results,
        arrays,
        pictures={"attribution": labelled_grid(rows_shown, names[:8])},
        captions={"attribution": "Where the network sees the true class"},
    )


def concentration(maps: Tensor) -> Tensor:
    """Return for each of ``[N, H, W]`` the share of its sum in the tenth of its pixels with most; NaN where all are 0.

    Example:
        >>> maps = torch.zeros(2, 5, 4)
        >>> maps[0, 0, 0], maps[1] = 1.0, 1.0
        >>> concentration(maps).tolist()
        [1.0, 0.10000000149011612]
    """
    flat = maps.flatten(1).abs()
    most = flat.topk(max(flat.shape[1] // 10, 1), dim=1).values.sum(1)
    return most / flat.sum(1)
