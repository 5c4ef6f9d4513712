"""Random numbers for a batch, from one generator or from one a sample."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_robust.core.errors import UserError

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for the whole batch, or one for each of its samples."""


def draw_normal(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Return standard normal float32 numbers of ``shape`` ``[B, ...]`` on ``device``.

    Numbers are drawn on the generator's own device and moved, so a CPU generator gives the same ones everywhere.

    Raises:
        UserError: the number of generators is not ``B``.
    """
    return _draw(
        lambda size, source: torch.randn(size, generator=source, device=source.device), shape, generator, device
    )


def draw_uniform(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Return float32 numbers uniform in [0, 1), drawn as ``draw_normal`` draws."""
    return _draw(
        lambda size, source: torch.rand(size, generator=source, device=source.device), shape, generator, device
    )


def choose_generators(generator: Generators | None, rows: Tensor) -> Generators | None:
    """Return the generators of some of a batch's samples; one for the whole batch stays what it is.

    Args:
        generator: of the batch.
        rows: int64 places in the batch.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[row] for row in rows.tolist()]


def _draw(
    draw: Callable[[list[int], torch.Generator], Tensor],
    shape: Sequence[int],
    generator: Generators,
    device: torch.device,
) -> Tensor:
    if isinstance(generator, torch.Generator):
        return draw(list(shape), generator).to(device)
    if len(generator) != shape[0]:
        raise UserError(
            f"{len(generator)} generators for {shape[0]} images: give one for the whole batch or one an image."
        )
    if not generator:
        return torch.zeros(list(shape), device=device)
    return torch.stack([draw(list(shape[1:]), source) for source in generator]).to(device)
