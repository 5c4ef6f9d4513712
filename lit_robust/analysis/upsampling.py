"""Maps of a layer brought to the size of a label map: bilinear over the whole, or at receptive fields' centres."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.models import Classifier
from lit_robust.models.taps import as_maps, layout_of, outputs

Upsample = Callable[[Tensor, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Field:
    """Where the places of a layer's maps look, along one axis of the image.

    Attributes:
        offset: centre of the first place's receptive field, in pixels; the first pixel's centre is 0.
        stride: pixels from one place to the next.
    """

    offset: float
    stride: float


def bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps ``[B, C, H, W]`` at a size, as if their places tiled the image (``align_corners=False``)."""
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=False)


def at_centres(field: Field, side: int) -> Upsample:
    """Return bilinear upsampling with each place at its receptive field's centre, as the original NetDissect's.

    Beyond the outermost centres the value is theirs.

    Args:
        field: of the layer, along both axes.
        side: of the images, which are square, in pixels.
    """

    def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
        across = maps.float() @ _weights(maps.shape[3], size[1], field, side, maps.device).T
        return _weights(maps.shape[2], size[0], field, side, maps.device) @ across

    return upsample


def _weights(places: int, pixels: int, field: Field, side: int, device: torch.device) -> Tensor:
    """Return the interpolation matrix ``[pixels, places]`` of one axis."""
    # The centre of a pixel of the label map, in pixels of the image.
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * (side / pixels) - 0.5
    at = ((centres - field.offset) / field.stride).clamp(0, places - 1)
    low = at.floor().long().clamp(max=max(places - 2, 0))
    weights = torch.zeros(pixels, places, dtype=torch.float64)
    rows = torch.arange(pixels)
    weights[rows, low] = 1 - (at - low)
    if places > 1:
        weights[rows, low + 1] = at - low
    return weights.float().to(device)


@torch.no_grad()
def receptive_field(classifier: Classifier, layer: str, side: int = 1024, width: int = 96) -> Field:
    """Find where a layer's places look, for any network of local operations.

    A row of the image that is not a number makes every place that sees it one. Two places far from the border are
    followed through an image that is tall enough for their whole fields.

    Args:
        classifier: in evaluation mode.
        layer: name.
        side: height of the probing image, in pixels.
        width: of the probing image, in pixels.

    Raises:
        UserError: a place sees the whole image, as behind attention or a mean over all places; or more than ``side``.
    """

    def sees(first: int, last: int) -> Tensor:
        image = torch.zeros(1, 3, side, width, device=classifier.mean.device)
        image[:, :, first:last] = torch.nan
        output = outputs(classifier, image, [layer])[layer]
        maps = as_maps(output, layout_of(classifier, layer, output, image))
        return maps[0].isnan().any(0).any(1)

    places = len(sees(0, 0))
    middle = places // 2
    centres = []
    for place in (middle, middle + 1) if places > middle + 1 else ():

        def unseen_from(row: int, place: int = place) -> bool:
            return not bool(sees(row, side)[place])

        def seen_up_to(row: int, place: int = place) -> bool:
            return bool(sees(0, row)[place])

        last = bisect_left(range(side), True, key=unseen_from) - 1
        first = bisect_left(range(1, side + 1), True, key=seen_up_to)
        if first > 0 and last < side - 1:
            centres.append((first + last) / 2)
    if len(centres) < 2:
        raise UserError(
            f"A place of the layer {layer!r} sees the whole image: set upsampling to bilinear, which needs no "
            "receptive fields."
        )
    stride = centres[1] - centres[0]
    return Field(centres[0] - middle * stride, stride)
