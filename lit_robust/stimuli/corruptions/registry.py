"""The corruptions by name, and the one function that applies them."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision
from lit_robust.core.seeds import stream_seed
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, SEVERITIES
from lit_robust.stimuli.corruptions import blur, digital, noise, spatter, weather
from lit_robust.stimuli.corruptions.shared import Draws
from lit_robust.stimuli.corruptions.weather import FrostPictures

SMALLEST_SIDE = 16
MODULES = (noise, blur, weather, digital, spatter)


def _function(name: str, frost_pictures: FrostPictures | None) -> Callable[[Tensor, int, Draws], Tensor]:
    """Return the function of a corruption's name: uint8 images, a severity and their draws to images of that shape."""
    if name not in ALL_CORRUPTIONS:
        raise UserError(f"There is no corruption {name!r}: choose one of {', '.join(ALL_CORRUPTIONS)}.")
    if name == "frost":
        return partial(weather.frost, pictures=frost_pictures or FrostPictures())
    found: Callable[[Tensor, int, Draws], Tensor] = next(
        getattr(module, name) for module in MODULES if hasattr(module, name)
    )
    return found


def corrupt(
    images: Tensor, name: str, severity: int, seeds: Sequence[int], frost: FrostPictures | None = None
) -> Tensor:
    """Corrupt images as ImageNet-C does.

    Parameters and formulas are those of the code that made ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking
    neural network robustness to common corruptions and perturbations"; ``hendrycks/robustness:
    ImageNet-C/create_c/make_imagenet_c.py``), with what that code does by accident. What comes out here is not stored
    as JPEG of quality 85, as the published files are, so report it as "ImageNet-C-like".

    The parameters are made for 224 pixels. At other sizes lengths in pixels (of blurs, flakes and drops) stay as they
    are; fog, frost, elastic transform, zoom and pixelate grow with the image.

    Args:
        images: ``[B, 3, H, W]`` uint8, H and W at least 16.
        name: one of ``ALL_CORRUPTIONS``.
        severity: 1 to 5.
        seeds: one an image, at least 0 and below 2**64. An image's result follows from the image, name, severity
            and its seed, whatever else is in the batch; CPU and GPU draw differently.
        frost: pictures for ``frost``; by default those that we draw, which are not ImageNet-C's.

    Returns:
        ``[B, 3, H, W]`` uint8 on the images' device.

    Raises:
        UserError: no such corruption or severity; images of another type, shape or size; not one seed an image.

    >>> corrupt(torch.full((1, 3, 16, 16), 100, dtype=torch.uint8), "brightness", 1, seeds=[0])[0, :, 0, 0].tolist()
    [125, 125, 125]
    """
    function = _function(name, frost)
    if severity not in SEVERITIES:
        raise UserError(f"Severity {severity} does not exist: choose 1 to 5.")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"Images are {images.dtype} {list(images.shape)}: corruptions need uint8 of [B, 3, H, W].")
    if min(images.shape[-2:]) < SMALLEST_SIDE:
        raise UserError(f"Images of {list(images.shape[-2:])} pixels are too small: use at least 16 x 16.")
    if len(seeds) != len(images) or any(seed < 0 for seed in seeds):
        raise UserError(f"{len(seeds)} seeds for {len(images)} images: give one each, none negative.")
    if not len(images):
        return images.clone()
    # The same seed means other noise for another corruption and severity.
    own = [stream_seed(seed, f"corruption {name}", severity) for seed in seeds]
    with full_precision(images.device.type):
        if images.device.type != "cpu":
            return function(images, severity, Draws(own, images.device))
        # One image at a time stays in a core's cache: on a CPU that is faster than the whole batch.
        out = torch.empty_like(images)
        for number, seed in enumerate(own):
            out[number] = function(images[number : number + 1], severity, Draws([seed], images.device))[0]
        return out
