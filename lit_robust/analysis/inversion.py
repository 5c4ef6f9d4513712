"""Inverting a representation, from noise or other images, near them or anywhere; and numbers with the pictures.

Engstrom et al. 2019, "Adversarial robustness as a prior for learned representations", sections 4.1 and A.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from lit_robust.analysis.ascent import Ascent, ImageObjective, Match, Settings, ascend, relative_distance
from lit_robust.analysis.representation import Representation
from lit_robust.attacks.attack import clean_logits, frozen
from lit_robust.core.errors import UserError
from lit_robust.metrics.intervals import Estimate, mean_of, share_of


@dataclass(frozen=True)
class Work:
    """How a study goes through its images.

    Attributes:
        batch: images optimised at once; results do not depend on it but for rounding.
        folder: where finished and begun batches are kept, so that the same call goes on there; null to keep nothing.
        progress: show a bar for each batch.
    """

    batch: int = 32
    folder: Path | None = None
    progress: bool = False


def ascend_all(
    represent: Representation,
    objective: ImageObjective,
    starts: Tensor,
    settings: Settings,
    work: Work,
    name: str,
) -> Ascent:
    """Take steps up the objective, batch by batch, on the network's device; see ``ascend``.

    Args:
        represent: images to representations.
        objective: of all images, in the processor's memory.
        starts: float32 ``[N, C, H, W]`` in [0, 1], on any device.
        settings: norm, distance, steps.
        work: batches, and where they are kept.
        name: of the study, for files and bars.

    Returns:
        What it led to, in the processor's memory.
    """
    device = next(represent.network.parameters()).device
    parts = []
    for first in range(0, len(starts), work.batch):
        rows = torch.arange(first, min(first + work.batch, len(starts)))
        found = ascend(
            represent,
            objective.select(rows).to(device),
            starts[rows].to(device),
            settings,
            file=work.folder / f"{name}-{first}-{len(rows)}.safetensors" if work.folder else None,
            progress=f"{name} {first + len(rows)}/{len(starts)}" if work.progress else "",
        )
        parts.append(Ascent(*(part.cpu() for part in found)))
    return Ascent(*(torch.cat([part[k] for part in parts]) for k in range(len(Ascent._fields))))


def in_batches(function: Representation | nn.Module, images: Tensor, batch: int) -> Tensor:
    """Return what a network, or its representation, makes of float32 ``[N, C, H, W]`` in [0, 1].

    It runs in eval mode, in fp32 and without gradients, on its own device; the answer is in the processor's memory.
    """
    network = function.network if isinstance(function, Representation) else function
    device = next(network.parameters()).device
    with frozen(network):
        return torch.cat([clean_logits(function, part.to(device)).cpu() for part in torch.split(images, batch)])


@dataclass(frozen=True)
class Inversions:
    """Images whose representations are near those of targets; ``N`` of each.

    Attributes:
        targets: float32 ``[N, C, H, W]``, the images whose representations were to be matched.
        starts: float32, where the search started.
        images: float32, where it ended.
        before: float32 ``[N]``, relative distance of the starts' representations to the targets'.
        after: float32 ``[N]``, of the images found.
        vanished: int64 ``[N]``, at how many steps the gradient was zero or not finite.
        steps: how many were taken.
    """

    targets: Tensor
    starts: Tensor
    images: Tensor
    before: Tensor
    after: Tensor
    vanished: Tensor
    steps: int


def invert(
    represent: Representation,
    targets: Tensor,
    starts: Tensor,
    settings: Settings,
    work: Work = Work(),
    name: str = "inversion",
) -> Inversions:
    """Search, from each start, for an image with the target's representation (equation 4).

    Args:
        represent: images to representations.
        targets: float32 ``[N, C, H, W]`` in [0, 1]; of any classes, or none.
        starts: float32 ``[N, C, H, W]`` in [0, 1]: noise, or other images.
        settings: an ``eps`` keeps the search near its start (Figures 4 and 5).
        work: batches, and where they are kept.
        name: for files and bars; different for each of several calls.

    Raises:
        UserError: there are not as many starts as targets, or a target's representation is 0.
    """
    if targets.shape != starts.shape:
        raise UserError(f"{list(starts.shape)} starts for {list(targets.shape)} targets: give as many of one size.")
    goals = in_batches(represent, targets, work.batch)
    if empty := int((goals == 0).all(1).sum()):
        raise UserError(f"The representation of {empty} of {len(goals)} targets is 0: take another layer.")
    before = relative_distance(in_batches(represent, starts, work.batch), goals)
    found = ascend_all(represent, Match(goals), starts, settings, work, name)
    after = relative_distance(in_batches(represent, found.images, work.batch), goals)
    return Inversions(targets, starts, found.images, before, after, found.vanished, settings.steps)


class Measured(NamedTuple):
    """One number with the pictures.

    Attributes:
        measure: its name in results.
        estimate: over the images.
        unit: as of a result.
    """

    measure: str
    estimate: Estimate
    unit: str


def measures(inverted: Inversions) -> list[Measured]:
    """Return how near inversions came, in the representation and in the image.

    ``distance_left`` is the share of the start's distance that is left; by it two networks compare, whose
    representations of different images are not equally far from each other. ``recovery`` is 1 minus the distance to the
    target's pixels over that of the start: above 0 the search went towards them. It says little where the
    representation keeps no colour.
    """
    similarity = structural_similarity_index_measure(
        inverted.images, inverted.targets, reduction="none", data_range=1.0
    )
    assert isinstance(similarity, Tensor)
    start = structural_similarity_index_measure(inverted.starts, inverted.targets, reduction="none", data_range=1.0)
    assert isinstance(start, Tensor)
    return [
        Measured("representation_distance", mean_of(inverted.after), "ratio"),
        Measured("representation_distance_of_start", mean_of(inverted.before), "ratio"),
        Measured("distance_left", mean_of(distance_left(inverted)), "ratio"),
        Measured("recovery", mean_of(recovery(inverted.images, inverted.targets, inverted.starts)), "relative"),
        Measured("ssim", mean_of(similarity), "ssim"),
        Measured("ssim_of_start", mean_of(start), "ssim"),
    ]


def distance_left(inverted: Inversions) -> Tensor:
    """Return the distance at the end over that at the start, ``[N]``; NaN where the start matched the target."""
    return torch.where(inverted.before > 0, inverted.after / inverted.before, torch.nan)


def recovery(images: Tensor, targets: Tensor, starts: Tensor) -> Tensor:
    """Return ``1 - ||x - t|| / ||x0 - t||`` for each image, ``[N]``; NaN where the start is the target."""
    left, whole = ((some - targets).flatten(1).norm(dim=1) for some in (images, starts))
    return torch.where(whole > 0, 1 - left / whole, torch.nan)


def start_invariance(first: Inversions, second: Inversions) -> Tensor:
    """Return the distance of two inversions of a target over that of their two starts, ``[N]``.

    It is 0 where the result does not depend on the start, and 1 where the starts' difference stays whole.

    Raises:
        UserError: the two are not of the same targets.
    """
    if not torch.equal(first.targets, second.targets):
        raise UserError("The inversions are of different targets: invert the same ones from two sets of starts.")
    found, begun = (
        (one - other).flatten(1).norm(dim=1)
        for one, other in ((first.images, second.images), (first.starts, second.starts))
    )
    return torch.where(begun > 0, found / begun, torch.nan)


def second_opinion(judge: nn.Module, images: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Tell for each image whether another network gives it the label, bool ``[N]``.

    The network that was inverted is not a judge: robust or not, it calls nearly all of its inversions by the targets'
    classes.

    Args:
        judge: images in [0, 1] to logits; better one that saw neither network's training.
        images: float32 ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, the targets' classes.
        batch: images at once.
    """
    return in_batches(judge, images, batch).argmax(1) == labels


def opinions(judge: nn.Module, inverted: Inversions, labels: Tensor, batch: int) -> list[Measured]:
    """Return how often a second network sees the target's class in the inversions, in their starts and in the targets.

    The rate of the starts is what chance gives, that of the targets the most that can be expected.
    """
    found = {
        "second_opinion": inverted.images,
        "second_opinion_of_start": inverted.starts,
        "second_opinion_of_target": inverted.targets,
    }
    return [
        Measured(name, share_of(second_opinion(judge, images, labels, batch)), "fraction")
        for name, images in found.items()
    ]


def reach(
    represent: Representation,
    targets: Tensor,
    starts: Tensor,
    settings: Mapping[float, Settings],
    work: Work = Work(),
) -> dict[float, Inversions]:
    """Return how near a representation comes within distances of the start (Figure 4): eps to inversions.

    Args:
        represent: images to representations.
        targets: float32 ``[N, C, H, W]`` in [0, 1].
        starts: float32 ``[N, C, H, W]``, images of other classes; the distance is around these.
        settings: for each eps.
        work: batches, and where they are kept.
    """
    return {eps: invert(represent, targets, starts, one, work, f"within-{eps:g}") for eps, one in settings.items()}


def area_between(eps: Sequence[float], standard: Tensor, robust: Tensor) -> Estimate:
    """Return the area between two networks' curves of relative distance over eps, divided by the range of eps.

    It is above 0 where the robust network keeps farther from the targets.

    Args:
        eps: ascending, K of them.
        standard: float ``[K, N]``, distances of one network.
        robust: float ``[K, N]``, of the other, for the same pairs of start and target.
    """
    at = torch.tensor(list(eps), dtype=torch.float64)
    return mean_of(torch.trapezoid((robust - standard).double(), at, dim=0) / (at[-1] - at[0]))


def other_class(labels: Tensor) -> Tensor:
    """Return for each image the place of another of another class, int64 ``[N]``: the next one in a circle that fits.

    Raises:
        UserError: all images are of one class.
    """
    count = len(labels)
    if count < 2 or bool((labels == labels[0]).all()):
        raise UserError(f"All {count} images are of one class: take some of another, to start from.")
    places = []
    for place in range(count):
        steps = (step for step in range(1, count) if labels[(place + step) % count] != labels[place])
        places.append((place + next(steps)) % count)
    return torch.tensor(places)
