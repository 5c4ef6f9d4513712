"""The Square attack (Andriushchenko et al. 2020): random search on the logits alone, without gradients."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_robust.attacks.attack import AttackResult, Model, check_eps, check_number
from lit_robust.attacks.losses import LOSSES, margin
from lit_robust.attacks.norms import L2, Generators, choose_generators, draw_uniform
from lit_robust.attacks.survivors import NormName, Record, SurvivorAttack
from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError, check_choice, check_count
from lit_robust.core.logits import logits_of

ScheduleName = Literal["fixed", "scaled"]

# After each of these queries, of 10,000, the squares' area halves (``square.py`` of fra31/auto-attack).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# Random numbers are drawn for this many queries at a time; the number is part of what a seed means.
DRAWN_AT_ONCE = 100


@dataclass(frozen=True)
class SquareResult(AttackResult):
    """What an ``AttackResult`` says, and how often the network was asked; ``steps`` are 0.

    Attributes:
        queries: int64 ``[B]``, forward passes of each image in the search; 0 where misclassified clean.
    """

    queries: Tensor


@dataclass(frozen=True)
class Square(SurvivorAttack):
    """Changes squares at random places, ever smaller ones, and keeps what raises the margin or breaks the image.

    Andriushchenko et al. 2020, with AutoAttack's settings (``square.py`` of fra31/auto-attack). Every image has its own
    random squares, where that code moves all images of a batch alike, and a square may lie at the last row and column,
    which that code leaves out. In L2 the first bumps lie in as many whole tiles of a fifth of the shorter side as fit.

    Attributes:
        norm: ``l2`` or ``linf``.
        eps: radius in [0, 1] pixel units.
        queries: changes tried for each image at most, each one forward pass, after that of the start.
        p_init: share of the image's area that the first squares cover, in (0, 1].
        schedule: when squares shrink: ``fixed``, after 10, 50, 200, 500, 1,000, 2,000, 4,000, 6,000 and 8,000 queries,
            as AutoAttack has it with its 5,000; ``scaled``, these numbers times ``queries`` / 10,000.

    Raises:
        UserError: a setting is out of range.
    """

    norm: NormName = "linf"
    eps: float = 8 / 255
    queries: int = 5000
    p_init: float = 0.8
    schedule: ScheduleName = "fixed"

    def __post_init__(self) -> None:
        check_choice("Square norm", self.norm, get_args(NormName))
        check_choice("Square schedule", self.schedule, get_args(ScheduleName))
        check_eps("Square eps", self.eps, self.norm)
        check_count("Square queries", self.queries, 1)
        check_number("Square p_init", self.p_init)
        if not 0 < self.p_init <= 1:
            raise UserError(f"Square p_init is {self.p_init}: give a share above 0 and at most 1, such as 0.8.")

    def __call__(
        self, model: Model, images: Numbers, labels: Numbers, *, generator: Generators | None = None
    ) -> SquareResult:
        """Attack and score; see ``SurvivorAttack``. Gradients are never asked for."""
        with self._opened(model, images, labels, LOSSES["margin"], generator) as record:
            self.explore(record, generator)
        # Without gradients it does not matter whether they vanish.
        result = replace(record.result(), probabilities=torch.zeros_like(record.broken))
        return SquareResult(**vars(result), queries=record.queries)

    def explore(self, record: Record, generator: Generators | None) -> None:
        """Search from a random start; see ``SurvivorAttack``."""
        rows = record.survivors()
        if not len(rows):
            return
        generator = choose_generators(generator, rows)
        assert generator is not None  # The call saw to it.
        self._search(record, rows, generator)

    def _search(self, record: Record, rows: Tensor, generator: Generators) -> None:
        moves = MOVES[self.norm]
        clean, labels = record.clean[rows], record.labels[rows]
        channels, height, width = clean.shape[1:]
        numbers = draw_uniform([len(rows), *moves.start_shape(clean.shape[1:])], generator, clean.device)
        tried = moves.start(clean, self.eps, numbers)
        best, highest = tried, torch.full_like(clean[:, 0, 0, 0], float("-inf"))
        for query in range(self.queries + 1):
            # Not under `no_grad`: see `frozen` on autocast's cache. Frozen weights build no graph anyway.
            logits = logits_of(record.model(tried)).detach()
            record.queries[rows] += 1
            reached = margin(logits, labels)
            higher = reached > highest
            best = torch.where(higher.view(-1, 1, 1, 1), tried, best)
            highest = torch.where(higher, reached, highest)
            # One read of the accelerator a query tells what leaves the batch.
            proposed = (logits.argmax(1) != labels).nonzero()[:, 0]
            if len(proposed):
                going = torch.ones_like(rows, dtype=torch.bool)
                going[proposed] = ~record.judge(rows[proposed], tried[proposed])
                left = going.nonzero()[:, 0]
                if not len(left):
                    return
                rows, clean, labels, best, highest, numbers = (
                    each[left] for each in (rows, clean, labels, best, highest, numbers)
                )
                if not isinstance(generator, torch.Generator):
                    generator = [generator[row] for row in left.tolist()]
            if query % DRAWN_AT_ONCE == 0:
                shape = [len(rows), DRAWN_AT_ONCE, moves.numbers(channels)]
                numbers = draw_uniform(shape, generator, clean.device)
            side = moves.side(self._share(query), height, width)
            tried = moves.propose(clean, best, self.eps, side, numbers[:, query % DRAWN_AT_ONCE])
        record.judge(rows, best)

    def _share(self, query: int) -> float:
        """Return the share of the image's area that the squares of a query cover, the first query being 0."""
        of_ten_thousand = query if self.schedule == "fixed" else query * 10_000 // self.queries
        return float(self.p_init / 2 ** bisect_left(HALVINGS, of_ten_thousand))

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values; eps is in [0, 1] pixel units."""
        start = "stripes" if self.norm == "linf" else "bumps"
        return super().protocol() | {"loss": "margin", "start": start, "verdict": "broken at any query"}


class LinfMoves:
    """Squares of one colour at distance eps (Andriushchenko et al. 2020), from vertical stripes.

    Images are float32 ``[B, C, H, W]`` in [0, 1], eps is in [0, 1] pixel units, and random numbers are uniform in
    [0, 1): ``[B, *start_shape]`` for the start, ``[B, numbers]`` for each try.
    """

    def start_shape(self, shape: Sequence[int]) -> list[int]:
        """Return a number for each channel and column."""
        return [shape[0], 1, shape[2]]

    def start(self, clean: Tensor, eps: float, numbers: Tensor) -> Tensor:
        """Return the clean images plus or minus eps, in stripes one pixel wide."""
        return (clean + eps * _signs(numbers)).clamp(0, 1)

    def numbers(self, channels: int) -> int:
        """Return two for the place and one for the sign of each channel."""
        return 2 + channels

    def side(self, share: float, height: int, width: int) -> int:
        """Return the rounded side, at least 1."""
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def propose(self, clean: Tensor, best: Tensor, eps: float, side: int, numbers: Tensor) -> Tensor:
        """Return the best images with a square set to the clean one plus or minus eps."""
        inside = _inside(_corner(numbers[:, 0], clean.shape[2], side), clean.shape[2], side)[:, None, :, None]
        inside = inside & _inside(_corner(numbers[:, 1], clean.shape[3], side), clean.shape[3], side)[:, None, None, :]
        # Any pixel of the ball moved by 2 eps ends on the wall of the ball, which is where this puts it at once.
        return torch.where(inside, (clean + eps * _signs(numbers[:, 2:, None, None])).clamp(0, 1), best)


class L2Moves:
    """Bumps that take their length from elsewhere (Andriushchenko et al. 2020), from a grid; used as `LinfMoves`."""

    def start_shape(self, shape: Sequence[int]) -> list[int]:
        """Return a number for each tile's orientation and for each tile and channel's sign."""
        _, rows, columns = _grid(*shape[1:])
        return [1 + shape[0], rows, columns]

    def start(self, clean: Tensor, eps: float, numbers: Tensor) -> Tensor:
        """Return the clean images plus bumps in tiles of a fifth of the side, of length eps in all before clamping."""
        height, width = clean.shape[2:]
        tile, rows, columns = _grid(height, width)
        bumps = (
            _bumps(tile, numbers[:, 0, :, :, None, None, None]) * _signs(numbers[:, 1:].movedim(1, 3))[..., None, None]
        )
        # [B, rows, columns, C, tile, tile] to [B, C, rows * tile, columns * tile].
        joined = bumps.permute(0, 3, 1, 4, 2, 5).reshape(*clean.shape[:2], rows * tile, columns * tile)
        top, left = (height - rows * tile) // 2, (width - columns * tile) // 2
        offset = torch.zeros_like(clean)
        offset[:, :, top : top + rows * tile, left : left + columns * tile] = joined
        return _at_length(clean, offset, eps)

    def numbers(self, channels: int) -> int:
        """Return four for two places, one for the orientation and one for the sign of each channel."""
        return 5 + channels

    def side(self, share: float, height: int, width: int) -> int:
        """Return the rounded side, odd and at least 3 where the image has room."""
        return min(max(round(math.sqrt(share * height * width)), 3) | 1, height, width)

    def propose(self, clean: Tensor, best: Tensor, eps: float, side: int, numbers: Tensor) -> Tensor:
        """Return the best images with one window's offset put, as a bump, into another."""
        offset = best - clean
        filled = _window(clean.shape, side, numbers[:, 0], numbers[:, 1])
        emptied = _window(clean.shape, side, numbers[:, 2], numbers[:, 3])
        moved = offset.clone()
        moved[filled] = 0
        moved[emptied] = 0
        # The new bump has what both windows held, channel by channel, and what the image's length has to spare.
        spare = (eps**2 - L2().length(offset) ** 2).clamp_min(0) / clean.shape[1]
        length = (spare + _channel_length(offset - moved) ** 2).sqrt()
        here = offset[filled]
        hills = _bumps(side, numbers[:, 4, None, None, None]) * _signs(numbers[:, 5:, None, None])
        hills = hills + here / (_channel_length(here) + 1e-12)
        moved[filled] = length * hills / (_channel_length(hills) + 1e-12)
        return _at_length(clean, moved, eps)


MOVES: Mapping[str, LinfMoves | L2Moves] = {"l2": L2Moves(), "linf": LinfMoves()}


def bump(height: int, width: int) -> Tensor:
    """Return a hill of nested rectangles, float32 ``[height, width]`` of L2 norm 1, 0 where there is no pixel.

    The ring at Chebyshev distance ``k`` from the centre has the value of the sum of ``1 / (i + 1) ** 2`` from ``k`` to
    half the longer side (Andriushchenko et al. 2020; ``eta_rectangles`` of fra31/auto-attack).
    """
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    terms = (torch.arange(max(height, width) // 2 + 1) + 1.0) ** -2
    hill = terms.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns[None, :])]
    unit: Tensor = hill / torch.linalg.vector_norm(hill).clamp_min(1e-12)
    return unit


# A search takes some ten sides, thousands of times each.
@lru_cache(maxsize=64)
def two_bumps(side: int, device: torch.device) -> Tensor:
    """Return two hills, one upright and one upside down, one above the other; ``[side, side]`` of L2 norm 1."""
    pair = torch.cat([bump(side // 2, side), -bump(side - side // 2, side)]).to(device)
    unit: Tensor = pair / torch.linalg.vector_norm(pair)
    return unit


def _bumps(side: int, numbers: Tensor) -> Tensor:
    upright = two_bumps(side, numbers.device)
    return torch.where(numbers < 0.5, upright, upright.T)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _corner(numbers: Tensor, length: int, side: int) -> Tensor:
    """Return the first pixel of a square, uniform over all places where it fits, the last one included."""
    return (numbers * (length - side + 1)).long()


def _inside(corner: Tensor, length: int, side: int) -> Tensor:
    places = torch.arange(length, device=corner.device) - corner[:, None]
    return (places >= 0) & (places < side)


def _window(shape: Sequence[int], side: int, top: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the index of each image's own window in a tensor of ``shape`` ``[B, C, H, W]``."""
    device = top.device
    along = torch.arange(side, device=device)
    rows, columns = _corner(top, shape[2], side)[:, None] + along, _corner(left, shape[3], side)[:, None] + along
    images, channels = torch.arange(shape[0], device=device), torch.arange(shape[1], device=device)
    return images[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]


def _grid(height: int, width: int) -> tuple[int, int, int]:
    tile = max(min(height, width) // 5, 1)
    return tile, height // tile, width // tile


def _channel_length(offset: Tensor) -> Tensor:
    return (offset**2).sum((2, 3), True).sqrt()


def _at_length(clean: Tensor, offset: Tensor, eps: float) -> Tensor:
    return (clean + offset * (eps / (L2().length(offset) + 1e-12))).clamp(0, 1)
