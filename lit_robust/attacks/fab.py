"""The fast adaptive boundary attack (Croce and Hein 2020, FAB), targeted: the nearest image of another class."""

from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from lit_robust.attacks.ascent import loss_gradient
from lit_robust.attacks.attack import Model, check_eps, check_number, score
from lit_robust.attacks.losses import LOSSES
from lit_robust.attacks.norms import NORMS, Generators, Norm
from lit_robust.attacks.survivors import NormName, Record, SurvivorAttack
from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError, check_choice, check_count
from lit_robust.core.logits import logits_of

# Of the segment to the clean image; each halving costs a forward pass.
BISECTIONS = 12


class Nearest(NamedTuple):
    """The nearest misclassified images that a search found.

    Attributes:
        images: float32 ``[B, C, H, W]`` in [0, 1]; the clean image where none was found.
        distance: float32 ``[B]`` in [0, 1] pixel units, in the attack's norm; 0 where the clean image is
            misclassified, infinite where none was found.
    """

    images: Tensor
    distance: Tensor


@dataclass(frozen=True)
class FAB(SurvivorAttack):
    """Steps to the linearised boundary with one other class at a time, drawn back towards the clean image.

    FAB-T of AutoAttack: Croce and Hein 2020 (FAB), without random starts and for target classes, as in ``fab_base.py``
    of fra31/auto-attack. Called, it is an attack of radius eps like any other: an image leaves at the first mistake
    within eps, where that code searches on for a nearer one, and where there is none the clean image is returned.
    `nearest` searches to the end, with no radius. No random number is drawn.

    Attributes:
        norm: ``l2`` or ``linf``.
        eps: radius in [0, 1] pixel units.
        steps: steps for each target, each two forward passes and one backward pass.
        targets: how many wrong classes are searched for, from the likeliest on the clean image; at most all of them.
        alpha_max: largest weight of the projection of the clean image in a step, in [0, 1].
        eta: how far beyond the linearised boundary a step leads, 1 or more.
        beta: from a misclassified point, the share of its distance that the search goes on from, in (0, 1).

    Raises:
        UserError: a setting is out of range.
    """

    norm: NormName = "linf"
    eps: float = 8 / 255
    steps: int = 100
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    draws_numbers = False

    def __post_init__(self) -> None:
        check_choice("FAB norm", self.norm, get_args(NormName))
        check_eps("FAB eps", self.eps, self.norm)
        check_count("FAB steps", self.steps, 1)
        check_count("FAB targets", self.targets, 1)
        for name, value in (("alpha_max", self.alpha_max), ("eta", self.eta), ("beta", self.beta)):
            check_number(f"FAB {name}", value)
        if not 0 <= self.alpha_max <= 1:
            raise UserError(f"FAB alpha_max is {self.alpha_max}: give a weight between 0 and 1, such as 0.1.")
        if not 1 <= self.eta < 2:
            raise UserError(f"FAB eta is {self.eta}: give a factor from 1 to below 2, such as 1.05.")
        if not 0 < self.beta < 1:
            raise UserError(f"FAB beta is {self.beta}: give a share between 0 and 1, such as 0.9.")

    def explore(self, record: Record, generator: Generators | None) -> None:
        """Search for each target in turn; see ``SurvivorAttack``."""
        targets = record.ranked_targets(self.targets)
        for rank in range(targets.shape[1]):
            rows = record.survivors()
            points = record.clean[rows]
            for _ in range(self.steps):
                if not len(rows):
                    return
                clean = record.clean[rows]
                points, length = self._step(record, rows, points, targets[rows, rank])
                record.steps[rows] += 1
                # In the precision of the attack, which only says where to go on: what is inside is judged in fp32. Not
                # under `no_grad`: see `frozen` on autocast's cache. Frozen weights build no graph anyway.
                mistaken = logits_of(record.model(points)).detach().argmax(1) != record.labels[rows]
                # One read of the accelerator a step tells what leaves the batch.
                inside = (mistaken & (length <= self.eps)).nonzero()[:, 0]
                back = clean + self.beta * (points - clean)
                onward = torch.where(mistaken.view(-1, 1, 1, 1), back, points)
                if len(inside):
                    going = torch.ones_like(rows, dtype=torch.bool)
                    going[inside] = ~record.judge(rows[inside], points[inside])
                    left = going.nonzero()[:, 0]
                    rows, onward = rows[left], onward[left]
                points = onward

    def nearest(self, model: Model, images: Numbers, labels: Numbers) -> Nearest:
        """Return the nearest misclassified images, however far, eps playing no part.

        After the last step the way back to the clean image is halved a few times, which finds the boundary on it to
        some ten-thousandths of the distance.

        Args:
            model: float images in [0, 1] to logits; an ``nn.Module`` is attacked in eval mode.
            images: float32 ``[B, C, H, W]`` in [0, 1].
            labels: int64 ``[B]``, the true classes.

        Raises:
            UserError: images or labels are not as above.
        """
        with self._opened(model, images, labels, LOSSES["margin"], None) as record:
            rows = record.survivors()
            best, distance = record.clean.clone(), torch.where(record.broken, 0.0, torch.inf)
            if len(rows):
                best[rows], distance[rows] = self._nearest(record, rows)
        return Nearest(best, distance)

    def _nearest(self, record: Record, rows: Tensor) -> tuple[Tensor, Tensor]:
        clean = record.clean[rows]
        best, distance = clean, torch.full_like(record.losses[rows], torch.inf)
        for targets in record.ranked_targets(self.targets)[rows].unbind(1):
            points = clean
            for _ in range(self.steps):
                points, length = self._step(record, rows, points, targets)
                mistaken = self._mistaken(record, rows, points)
                nearer = mistaken & (length < distance)
                best = torch.where(nearer.view(-1, 1, 1, 1), points, best)
                distance = torch.where(nearer, length, distance)
                back = clean + self.beta * (points - clean)
                points = torch.where(mistaken.view(-1, 1, 1, 1), back, points)
        right, wrong = clean, best
        for _ in range(BISECTIONS):
            middle = (right + wrong) / 2
            mistaken = self._mistaken(record, rows, middle).view(-1, 1, 1, 1)
            right, wrong = torch.where(mistaken, right, middle), torch.where(mistaken, middle, wrong)
        return wrong, torch.where(distance.isfinite(), self._length(wrong - clean), distance)

    def _step(self, record: Record, rows: Tensor, points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next points and their distances from the clean images."""
        clean, labels = record.clean[rows], record.labels[rows]

        def lead_of(logits: Tensor) -> Tensor:
            return logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]

        lead, normals, _, vanished = loss_gradient(record.model, lead_of, points)
        record.vanished[rows] += vanished
        points = boundary_step(points, clean, normals, lead, NORMS[self.norm], self.alpha_max, self.eta)
        return points, self._length(points - clean)

    def _length(self, offset: Tensor) -> Tensor:
        return NORMS[self.norm].length(offset)[:, 0, 0, 0]

    def _mistaken(self, record: Record, rows: Tensor, points: Tensor) -> Tensor:
        return score(record.model, points, record.labels[rows], record.loss).success

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values; eps is in [0, 1] pixel units."""
        return super().protocol() | {"start": "none", "verdict": "broken at any step within eps"}


def boundary_step(
    points: Tensor, clean: Tensor, normals: Tensor, lead: Tensor, norm: Norm, alpha_max: float, eta: float
) -> Tensor:
    """Return the next points of a search: beyond the linearised boundary, and drawn towards the clean images.

    Croce and Hein 2020 (FAB): a mean of the point's and the clean image's projections to the
    boundary, both overshot by ``eta``, where the nearer one weighs more.

    Args:
        points: float32 ``[B, C, H, W]`` in [0, 1], where the search stands.
        clean: the same shape, the clean images.
        normals: gradients of ``lead`` at ``points``.
        lead: float32 ``[B]``, the target's logit minus the label's at ``points``.
        norm: what distance is measured in.
        alpha_max: largest weight of the clean image's projection.
        eta: factor on the moves to the boundary.
    """
    gap = torch.cat([-lead, (normals * (points - clean)).sum((1, 2, 3)) - lead])
    moves = move_to_hyperplane(torch.cat([points, clean]), torch.cat([normals, normals]), gap, norm)
    length = norm.length(moves).clamp_min(1e-8)
    own, other = length.chunk(2)
    move, move_of_clean = moves.chunk(2)
    alpha = (own / (own + other)).clamp_max(alpha_max)
    return ((1 - alpha) * (points + eta * move) + alpha * (clean + eta * move_of_clean)).clamp(0, 1)


# A handful is usual. Each pass goes beyond a kink or ends, and kinks that lie in series are of ever smaller slope.
MOST_PASSES = 200


def move_to_hyperplane(points: Tensor, normals: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the shortest moves from points to a hyperplane within [0, 1], float32 ``[B, C, H, W]``.

    A move ``d`` has ``normals . d = gap`` and ``0 <= points + d <= 1``. Where no point of the box is on the hyperplane,
    it leads to the box's corner nearest to it. Pixels without a normal stay.

    Croce and Hein 2020 (FAB; ``fab_projections.py`` of fra31/auto-attack) sort the pixels by when they reach the box's
    wall. Here the length of the move is found by Newton's method: the way gained towards the plane is concave and
    piecewise linear in that length, so Newton's steps from 0 never overshoot, and end on the piece that holds the
    solution.

    Args:
        points: float32 ``[B, C, H, W]`` in [0, 1].
        normals: the same shape.
        gap: float32 ``[B]``; the hyperplane's offset less ``normals . points``, which may be of either sign.
        norm: what a move's length is measured in.
    """
    # A largest normal of 1 keeps tiny gradients from vanishing in the products.
    scale = normals.abs().amax((1, 2, 3)).clamp_min(torch.finfo(normals.dtype).tiny)
    towards = torch.where(gap < 0, -1, 1) / scale
    normals, gap = normals * towards.view(-1, 1, 1, 1), gap * towards
    # A move of some length changes each pixel by its speed times that length, until the wall stops it.
    heading = norm.normalise(normals)
    speed, pull = heading.abs(), normals.abs()
    room = torch.where(heading > 0, 1 - points, points)
    length = torch.zeros_like(gap)
    for _ in range(MOST_PASSES):
        path = speed * length.view(-1, 1, 1, 1)
        slope = (pull * speed * (path < room)).sum((1, 2, 3))
        left = gap - (pull * torch.minimum(path, room)).sum((1, 2, 3))
        longer = torch.where((slope > 0) & (left > 0), length + left / slope, length)
        # What is left below a millionth is rounding. This read of the accelerator saves most of the passes.
        over = bool((longer <= length * (1 + 1e-6)).all())
        length = longer
        if over:
            break
    return heading.sign() * torch.minimum(speed * length.view(-1, 1, 1, 1), room)
