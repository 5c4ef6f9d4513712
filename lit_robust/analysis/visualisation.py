"""What raises a coordinate of a representation: images made for it, images that have it, and images it is added to.

Engstrom et al. 2019, sections 4.2 and 4.2.1.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_robust.analysis.ascent import Maximise, Settings, is_highest
from lit_robust.analysis.inversion import Measured, Work, ascend_all, in_batches
from lit_robust.analysis.representation import Representation
from lit_robust.core.errors import UserError, check_choice
from lit_robust.core.seeds import stream_seed
from lit_robust.metrics.intervals import mean_of

Rule = Literal["text", "code"]


@dataclass(frozen=True)
class Visualisations:
    """Images that were changed to raise coordinates: ``U`` coordinates from ``S`` starts each.

    Attributes:
        units: int64 ``[U]``.
        starts: float32 ``[S, C, H, W]``.
        images: float32 ``[U, S, C, H, W]``.
        before: float32 ``[U, S]``, the coordinate at the start.
        after: float32 ``[U, S]``, and at the end.
        exceeds: bool ``[U, S]``, true where at the end the coordinate is the highest of all.
        steps: int64 ``[U, S]``, how many were taken.
    """

    units: Tensor
    starts: Tensor
    images: Tensor
    before: Tensor
    after: Tensor
    exceeds: Tensor
    steps: Tensor


def visualise(
    represent: Representation,
    units: Tensor,
    starts: Tensor,
    settings: Settings,
    work: Work = Work(),
    name: str = "visualisation",
) -> Visualisations:
    """Raise each coordinate from each start, without any prior on images (equation 5; Figure 7).

    Args:
        represent: images to representations.
        units: int64 ``[U]``, coordinates.
        starts: float32 ``[S, C, H, W]`` in [0, 1]: images, noise, or a single colour.
        settings: 200 steps of 1 in the paper; 1,500 of 0.5 within 500, from grey, for images that excite a unit most.
        work: batches, and where they are kept.
        name: for files and bars; different for each of several calls.

    Raises:
        UserError: the representation has no such coordinate.
    """
    return _raise(represent, Maximise(units), starts, settings, work, name)


def manipulate(
    represent: Representation,
    units: Tensor,
    starts: Tensor,
    settings: Settings,
    rule: Rule = "text",
    work: Work = Work(),
) -> Visualisations:
    """Add a feature to images and leave the rest of them (section 4.2.1, Figure 11).

    Args:
        represent: images to representations.
        units: int64 ``[U]``, the features.
        starts: float32 ``[S, C, H, W]`` in [0, 1].
        settings: 800 steps of 0.1 in the paper's code.
        rule: when it ends. ``text``: as soon as the feature exceeds all other coordinates; ``code``: as soon as it is
            1, above which ascent up min(R_i - 1, 0) has no gradient.
        work: batches, and where they are kept.
    """
    check_choice("rule", rule, get_args(Rule))
    raised = Maximise(units, until_highest=True) if rule == "text" else Maximise(units, level=1.0)
    return _raise(represent, raised, starts, settings, work, f"manipulation-{rule}")


def _raise(
    represent: Representation, raised: Maximise, starts: Tensor, settings: Settings, work: Work, name: str
) -> Visualisations:
    begun = in_batches(represent, starts, work.batch)
    units, width = raised.units, begun.shape[1]
    if len(units) and not 0 <= int(units.min()) <= int(units.max()) < width:
        raise UserError(f"Units are {units.tolist()}: the representation has those from 0 to {width - 1}.")
    of_all = replace(raised, units=units.repeat_interleave(len(starts)))
    found = ascend_all(represent, of_all, starts.repeat(len(units), 1, 1, 1), settings, work, name)
    ended = in_batches(represent, found.images, work.batch)
    shape = (len(units), len(starts))
    return Visualisations(
        units,
        starts,
        found.images.view(*shape, *starts.shape[1:]),
        begun[:, units].T,
        ended.gather(1, of_all.units[:, None]).view(shape),
        is_highest(ended, of_all.units).view(shape),
        found.steps.view(shape),
    )


def exciting(represent: Representation, images: Tensor, units: Tensor, count: int, batch: int) -> Tensor:
    """Return the places of the images in which units are highest, int64 ``[U, count]``, the highest first (Figure 8).

    Args:
        represent: images to representations.
        images: float32 ``[N, C, H, W]`` in [0, 1].
        units: int64 ``[U]``.
        count: images a unit; of ties the first.
        batch: images at once.
    """
    if not 1 <= count <= len(images):
        raise UserError(f"{count} images a unit are wanted of {len(images)}: give 1 to {len(images)}.")
    values = in_batches(represent, images, batch)[:, units]
    return values.argsort(dim=0, descending=True, stable=True)[:count].T


def drawn_units(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Draw coordinates that are above 0 for some image, int64 ``[count]``, ascending.

    Args:
        vectors: representations ``[N, D]`` of some images.
        count: how many.
        seed: of the draw.

    Raises:
        UserError: there are fewer.
    """
    alive = (vectors > 0).any(0).nonzero()[:, 0]
    if count > len(alive):
        raise UserError(f"{count} units are wanted, where {len(alive)} are above 0 for some image: ask for fewer.")
    source = torch.Generator().manual_seed(stream_seed(seed, "units"))
    return alive[torch.randperm(len(alive), generator=source)[:count]].sort().values


def answer_entropy(answers: Tensor) -> Tensor:
    """Return the entropy, in bits, of the classes in each row of int64 ``[U, S]``, ``[U]``; 0 where all are one class.

    Example:
        >>> answer_entropy(torch.tensor([[3, 3, 3, 3], [0, 0, 1, 1], [0, 1, 2, 3]])).tolist()
        [0.0, 1.0, 2.0]
    """
    shares = (answers[:, :, None] == answers[:, None]).double().mean(2)
    return -shares.log2().mean(1) + 0.0


def visualisation_measures(
    made: Visualisations, judge: nn.Module | None, top_labels: Tensor, batch: int
) -> list[Measured]:
    """Return by how much units rose, and what another network sees in the images.

    ``answer_entropy`` tells whether a unit's visualisations show one thing whatever they started from; ``agreement``
    whether that is what the images show which excite the unit most (Figure 8): the share of visualisations that are
    called by the most frequent class among those.

    Args:
        made: of ``U`` units.
        judge: images in [0, 1] to logits; None for the rise alone.
        top_labels: int64 ``[U, K]``, classes of the images that excite each unit most.
        batch: images at once.
    """
    gain = Measured("activation_gain", mean_of((made.after - made.before).mean(1)), "activation")
    if judge is None:
        return [gain]
    answers = in_batches(judge, made.images.flatten(0, 1), batch).argmax(1).view(made.after.shape)
    most = top_labels.mode(dim=1).values
    return [
        Measured("answer_entropy", mean_of(answer_entropy(answers)), "bits"),
        Measured("agreement", mean_of((answers == most[:, None]).double().mean(1)), "fraction"),
        gain,
    ]


def manipulation_measures(made: Visualisations) -> list[Measured]:
    """Return how often the feature became the highest, and how far the images went; means over units."""
    moved = (made.images - made.starts).flatten(2).norm(dim=2)
    return [
        Measured("feature_is_highest", mean_of(made.exceeds.double().mean(1)), "fraction"),
        Measured("distance_moved", mean_of(moved.mean(1)), "l2"),
        Measured("steps_taken", mean_of(made.steps.double().mean(1)), "steps"),
    ]
