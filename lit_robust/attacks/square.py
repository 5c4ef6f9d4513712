"""The Square attack (Andriushchenko et al. 2020): random search on the logits alone, without gradients."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from lit_robust.attacks.attack import AttackResult, Model
from lit_robust.attacks.checks import check_count, check_eps, check_number
from lit_robust.attacks.draws import Generators, choose_generators, draw_uniform
from lit_robust.attacks.losses import LOSSES, margin
from lit_robust.attacks.square_moves import MOVES
from lit_robust.attacks.survivors import Ledger, NormName, SurvivorAttack
from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError, check_choice
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
        with self._opened(model, images, labels, LOSSES["margin"], generator) as ledger:
            self.explore(ledger, generator)
        return SquareResult(
            ledger.images,
            ledger.broken,
            ledger.losses,
            ledger.steps,
            ledger.vanished,
            torch.zeros_like(ledger.broken),  # Without gradients it does not matter whether they vanish.
            ledger.queries,
        )

    def explore(self, ledger: Ledger, generator: Generators | None) -> None:
        """Search from a random start; see ``SurvivorAttack``."""
        rows = ledger.open()
        if not len(rows):
            return
        generator = choose_generators(generator, rows)
        assert generator is not None  # The call saw to it.
        self._search(ledger, rows, generator)

    def _search(self, ledger: Ledger, rows: Tensor, generator: Generators) -> None:
        moves = MOVES[self.norm]
        clean, labels = ledger.clean[rows], ledger.labels[rows]
        channels, height, width = clean.shape[1:]
        numbers = draw_uniform([len(rows), *moves.start_shape(clean.shape[1:])], generator, clean.device)
        tried = moves.start(clean, self.eps, numbers)
        best, highest = tried, torch.full_like(clean[:, 0, 0, 0], float("-inf"))
        for query in range(self.queries + 1):
            # Not under `no_grad`: see `frozen` on autocast's cache. Frozen weights build no graph anyway.
            logits = logits_of(ledger.model(tried)).detach()
            ledger.queries[rows] += 1
            reached = margin(logits, labels)
            higher = reached > highest
            best = torch.where(higher.view(-1, 1, 1, 1), tried, best)
            highest = torch.where(higher, reached, highest)
            # One read of the accelerator a query tells what leaves the batch.
            proposed = (logits.argmax(1) != labels).nonzero()[:, 0]
            if len(proposed):
                going = torch.ones_like(rows, dtype=torch.bool)
                going[proposed] = ~ledger.settle(rows[proposed], tried[proposed])
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
        ledger.settle(rows, best)

    def _share(self, query: int) -> float:
        """Return the share of the image's area that the squares of a query cover, the first query being 0."""
        of_ten_thousand = query if self.schedule == "fixed" else query * 10_000 // self.queries
        return float(self.p_init / 2 ** bisect_left(HALVINGS, of_ten_thousand))

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values; eps is in [0, 1] pixel units."""
        return {
            "name": "Square",
            "norm": self.norm,
            "eps": float(self.eps),
            "queries": self.queries,
            "p_init": float(self.p_init),
            "schedule": self.schedule,
            "loss": "margin",
            "start": "stripes" if self.norm == "linf" else "bumps",
            "verdict": "broken at any query",
        }

    def with_eps(self, eps: float) -> Self:
        """Return this attack at another radius; see ``Attack``."""
        return replace(self, eps=eps)
