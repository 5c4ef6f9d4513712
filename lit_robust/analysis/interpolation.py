"""From one image to another through the representation, with the mean of their pixels (Engstrom et al. 2019, A.5)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_robust.analysis.ascent import Match, Settings, relative_distance
from lit_robust.analysis.inversion import Measured, Work, ascend_all, in_batches
from lit_robust.analysis.representation import Representation
from lit_robust.core.errors import UserError, check_count
from lit_robust.metrics.intervals import mean_of, share_of


@dataclass(frozen=True)
class Interpolations:
    """Paths between pairs of images: ``N`` pairs, ``K`` points each, both ends among them.

    Attributes:
        images: float32 ``[N, K, C, H, W]``, whose representations lie on the line between the ends'.
        pixels: float32 ``[N, K, C, H, W]``, on the line between the ends' pixels, where each search started.
        before: float32 ``[N, K]``, relative distance of the pixel mean's representation to the wanted one.
        after: float32 ``[N, K]``, of the image found.
    """

    images: Tensor
    pixels: Tensor
    before: Tensor
    after: Tensor


def interpolate(
    represent: Representation, first: Tensor, second: Tensor, points: int, settings: Settings, work: Work = Work()
) -> Interpolations:
    """Invert the points of the line between two images' representations (equation 6).

    Args:
        represent: images to representations.
        first: float32 ``[N, C, H, W]`` in [0, 1].
        second: likewise, where each path ends.
        points: K, of a path, both ends among them; the paper has 10.
        settings: norm, distance and steps; 10,000 steps of 1 in the paper, of 0.1 on 32 px.
        work: batches, and where they are kept.

    Raises:
        UserError: fewer than 2 points, or pairs of different sizes.
    """
    check_count("points", points, 2)
    if first.shape != second.shape:
        raise UserError(f"{list(first.shape)} and {list(second.shape)} are not pairs: give as many images of one size.")
    ends = torch.stack([in_batches(represent, images, work.batch) for images in (first, second)], 1)
    # float32 of exact fractions: the ends are the images themselves.
    parts = torch.linspace(0, 1, points)
    shape = (len(first), points, *first.shape[1:])
    pixels = torch.lerp(first[:, None], second[:, None], parts.view(1, -1, 1, 1, 1)).clamp(0, 1)
    goals = torch.lerp(ends[:, :1], ends[:, 1:], parts.view(1, -1, 1)).flatten(0, 1)
    if bool((goals == 0).all(1).any()):
        raise UserError("A point on the way has the representation 0: take another layer.")
    starts = pixels.flatten(0, 1)
    before = relative_distance(in_batches(represent, starts, work.batch), goals)
    found = ascend_all(represent, Match(goals), starts, settings, work, "interpolation")
    after = relative_distance(in_batches(represent, found.images, work.batch), goals)
    return Interpolations(found.images.view(shape), pixels, before.view(shape[:2]), after.view(shape[:2]))


def path_measures(paths: Interpolations, judge: nn.Module | None, labels: Tensor, batch: int) -> list[Measured]:
    """Return what another network sees on the way, through the representation and through the pixels.

    ``monotone_path`` is the share of paths on which the second class's logit, less the first one's, rises at every
    point. ``either_class`` is the share of points between the ends that are called one of the two classes; an image of
    both at once, the ghost that a mean of pixels is, may be called neither.

    Args:
        paths: between images of two classes each.
        judge: images in [0, 1] to logits; None for the distances alone.
        labels: int64 ``[N, 2]``, the classes of the two ends; they differ.
        batch: images at once.
    """
    measured = [
        Measured("representation_distance", mean_of(paths.after[:, 1:-1].mean(1)), "ratio"),
        Measured("representation_distance_of_pixel_mean", mean_of(paths.before[:, 1:-1].mean(1)), "ratio"),
    ]
    if judge is None:
        return measured
    for ending, images in (("", paths.images), ("_of_pixel_mean", paths.pixels)):
        logits = in_batches(judge, images.flatten(0, 1), batch).view(*images.shape[:2], -1)
        rows = torch.arange(len(labels))[:, None]
        lead = logits[rows, :, labels[:, 1:]] - logits[rows, :, labels[:, :1]]
        between = (logits.argmax(2)[:, :, None] == labels[:, None]).any(2)[:, 1:-1]
        measured += [
            Measured(f"monotone_path{ending}", share_of((lead[:, 0].diff(dim=1) > 0).all(1)), "fraction"),
            Measured(f"either_class{ending}", mean_of(between.double().mean(1)), "fraction"),
        ]
    return measured
