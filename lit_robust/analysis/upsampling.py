"""Maps of a layer brought to the size of a label map: bilinear over the whole, or at receptive fields' centres."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from lit_robust.core.errors import UserError
from lit_robust.models import Classifier
from lit_robust.models.taps import as_maps, layout_of, outputs

# Where the pixels of a label map lie among a layer's places along one axis: from the numbers of places and of pixels to
# float64 ``[pixels]``, which rise; 0 is the first place, and what lies beyond the outermost places has their value.
Axis = Callable[[int, int], Tensor]
AT_ONCE = 1 << 20  # values that are interpolated; some 30 MiB with all that goes with them.


@dataclass(frozen=True)
class Field:
    """Where the places of a layer's maps look, along one axis of the image.

    Attributes:
        offset: centre of the first place's receptive field, in pixels; the first pixel's centre is 0.
        stride: pixels from one place to the next.
    """

    offset: float
    stride: float


def bilinear(places: int, pixels: int) -> Tensor:
    """Return where pixels lie among places that tile the image, as of ``interpolate(align_corners=False)``."""
    return (torch.arange(pixels, dtype=torch.float64) + 0.5) * (places / pixels) - 0.5


def at_centres(field: Field, side: int) -> Axis:
    """Return where pixels lie among places at their receptive fields' centres, as in the original NetDissect.

    Args:
        field: of the layer, along both axes.
        side: of the images, which are square, in pixels.
    """

    def axis(_places: int, pixels: int) -> Tensor:
        # The centre of a pixel of the label map, in pixels of the image.
        centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * (side / pixels) - 0.5
        return (centres - field.offset) / field.stride

    return axis


def passing(maps: Tensor, limits: Tensor, size: tuple[int, int], axis: Axis) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give the pixels whose bilinearly upsampled value exceeds a limit, without upsampling anything else.

    An interpolated value exceeds no value that it is between. So only those gaps between neighbouring places are looked
    at of which one has a value above the limit: some two in a hundred for thresholds of the top .005. Along a row
    values rise or fall from place to place, so those that exceed it in a gap are its first or its last pixels.

    Args:
        maps: float32 ``[C, h, w]``.
        limits: float32 ``[C]``.
        size: height and width to upsample to.
        axis: where the pixels lie, along both axes.

    Yields:
        Units, which do not fall, first pixels and numbers of pixels, ``[N]`` each: pixels of one row that follow each
        other, none of them twice; a pixel's number is its row times the width plus its column.
    """
    limits = limits.to(maps.device)
    # Beyond the outermost places the value is theirs.
    padded = functional.pad(maps[None], (1, 1, 1, 1), mode="replicate")[0]
    above = padded > limits[:, None, None]
    above = above[:, 1:] | above[:, :-1]
    unit, top, left = (above[:, :, 1:] | above[:, :, :-1]).nonzero(as_tuple=True)
    first_row, of_row = (part.to(maps.device) for part in _gaps(axis, maps.shape[1], size[0]))
    first_column, of_column = (part.to(maps.device) for part in _gaps(axis, maps.shape[2], size[1]))
    columns = (~of_column.isnan()).sum(1)
    flat, wide = padded.flatten(), padded.shape[2]
    corner, of_row = (unit * padded.shape[1] + top) * wide + left, of_row.index_select(0, top)

    def between(at: Tensor) -> Tensor:
        above, below = flat.index_select(0, at), flat.index_select(0, at + wide)
        return torch.lerp(above[:, None], below[:, None], of_row)

    west, east = between(corner), between(corner + 1)
    active = (torch.maximum(west, east) > limits.index_select(0, unit)[:, None]).flatten().nonzero()[:, 0]
    west, east = (one.flatten().index_select(0, active) for one in (west, east))
    gap, number = active // of_row.shape[1], active % of_row.shape[1]
    unit, top, left = (one.index_select(0, gap) for one in (unit, top, left))
    row = first_row.index_select(0, top) + number
    begin = row * size[1] + first_column.index_select(0, left)
    limit, columns = limits.index_select(0, unit), columns.index_select(0, left)
    lines = max(AT_ONCE // of_column.shape[1], 1)
    for start in range(0, len(unit), lines):
        part = slice(start, start + lines)
        values = torch.lerp(west[part, None], east[part, None], of_column.index_select(0, left[part]))
        count = (values > limit[part, None]).sum(1)
        behind = torch.where(east[part] > west[part], columns[part] - count, 0)
        some = count.nonzero()[:, 0]
        yield (
            unit[part].index_select(0, some),
            (begin[part] + behind).index_select(0, some),
            count.index_select(0, some),
        )


@lru_cache(64)
def _gaps(axis: Axis, places: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel ``[G]`` in each gap between places and before and behind them, G = places + 1.

    And ``[G, most]``, how far from the gap's first to its second place each pixel in it is, in [0, 1); NaN where a gap
    has fewer.
    """
    at = axis(places, pixels).clamp(-1, places - 0.5)
    low = at.floor()
    gap = low.long() + 1
    first = torch.searchsorted(gap, torch.arange(places + 1))
    number = torch.arange(len(at)) - first[gap]
    weights = torch.full((places + 1, int(number.max()) + 1), torch.nan)
    weights[gap, number] = (at - low).float()
    return first, weights


def masks(maps: Tensor, limits: Tensor, size: tuple[int, int], axis: Axis) -> Tensor:
    """Return where upsampled maps exceed limits, bool ``[C, *size]``; the arguments are those of ``passing``."""
    pixels = size[0] * size[1]
    edges = torch.zeros(len(maps) * pixels + 1, dtype=torch.int8, device=maps.device)
    for units, first, count in passing(maps, limits, size, axis):
        begin = units * pixels + first
        edges.index_add_(0, begin, torch.ones_like(begin, dtype=torch.int8))
        edges.index_add_(0, begin + count, -torch.ones_like(begin, dtype=torch.int8))
    return edges[:-1].cumsum(0, dtype=torch.int8).view(-1, *size) > 0


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
