"""Frosted glass: pixels that take over the colour of a neighbour, between two light blurs."""

import torch
from torch import Tensor

from lit_robust.stimuli.corruptions.draws import Draws, to_bytes
from lit_robust.stimuli.corruptions.filters import gaussian

DEVIATION_REACH_ROUNDS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))


def sources(step: Tensor, reach: int) -> Tensor:
    """Return which pixel of the old image each pixel of the new one shows after one round of copying.

    The published code visits the pixels from the last row and column to row and column ``reach + 1``, and means to swap
    each with a neighbour; on NumPy views the swap only copies the neighbour to the pixel. A pixel shows the *new*
    colour of a neighbour visited before it, so colours travel along chains. Here every pixel first points to its
    neighbour; then all pointers are followed at once, which doubles the steps taken each time.

    Args:
        step: ``[B, H, W]`` int, which neighbour: ``(dy + reach) · 2 · reach + dx + reach``, dy and dx from ``-reach``
            to ``reach - 1``.
        reach: how far a neighbour may be, in pixels.

    Returns:
        ``[B, H · W]`` int64, indices into the flattened image; the same as visiting one pixel after the other.
    """
    batch, height, width = step.shape
    count = height * width
    here = torch.arange(count, device=step.device).view(height, width)
    # Entries from ``count`` on stand for old pixels, and point to themselves.
    pointer = torch.cat([here.view(-1) + count, here.view(-1) + count]).repeat(batch, 1)
    rows, columns = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    move = step[:, rows, columns].long()
    neighbour = here[rows, columns] + (move // (2 * reach) - reach) * width + (move % (2 * reach) - reach)
    visited = torch.zeros(height, width, dtype=torch.bool, device=step.device)
    visited[rows, columns] = True
    before = visited.view(-1)[neighbour] & (neighbour > here[rows, columns])
    new = pointer[:, :count].view(batch, height, width)
    new[:, rows, columns] = neighbour + count * (~before)
    while True:
        further = pointer.gather(1, pointer[:, :count])
        if torch.equal(further, pointer[:, :count]):
            return further - count
        pointer[:, :count] = further


def glass_blur(images: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blur, let every pixel take over a random neighbour's colour, blur again.

    Args:
        images: ``[B, 3, H, W]`` uint8.
        severity: 1 to 5.
        draws: the images' random numbers.
    """
    deviation, reach, rounds = DEVIATION_REACH_ROUNDS[severity - 1]
    batch, channels, height, width = images.shape
    pixels = to_bytes(gaussian(images.float(), deviation)).view(batch, channels, -1)
    for _ in range(rounds):
        source = sources(draws.integers((height, width), 4 * reach * reach), reach)
        pixels = pixels.gather(2, source[:, None].expand(-1, channels, -1))
    return to_bytes(gaussian(pixels.view_as(images).float(), deviation))
