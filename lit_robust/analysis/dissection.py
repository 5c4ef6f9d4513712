"""Network dissection (Bau et al. 2017): which marked concept each unit's strongest activations fall on.

A unit's mask is where its upsampled map exceeds the value that a share of its activations, as the layer gives them,
exceeds. Its IoU with a concept is the intersection over the union of mask and label, summed over images; the union
counts the mask in the images of ``denominator``. Both are integers, so that nothing depends on batches or ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

from lit_robust.analysis.concepts import Concepts
from lit_robust.analysis.quantiles import UpperQuantile
from lit_robust.analysis.upsampling import Axis, passing
from lit_robust.core.precision import full_precision
from lit_robust.models import Classifier
from lit_robust.models.taps import Layout, as_maps, layout_of, outputs

# category-images: those that have a pixel of the concept's category, as in the original; touched: those in which the
# unit's own mask touches the category, as in NetDissect-Lite and so in Chen, Agarwal & Nguyen (2020), which leaves out
# images that the unit gets wholly wrong and is never lower; all: every image, as in davidbau/dissect.
Denominator = Literal["category-images", "touched", "all"]
KEPT = 1 << 27  # activations, 512 MiB.


@dataclass
class Tally:
    """Integer sums over images, which those of other images can be added to.

    Attributes:
        both: int64 ``[U, L]``, pixels of a unit's mask with a label.
        unit: int64 ``[U]``, pixels of its mask in all images.
        unit_in: int64 ``[U, K]``, those in images that have the category.
        unit_touching: int64 ``[U, K]``, those in images where the mask touches the category.
        label: int64 ``[L]``, pixels of a label.
        pixels: of all images' label maps.
        pixels_in: int64 ``[K]``, those of images that have the category.
        images: int64 ``[L]``, images that have the label.
    """

    both: Tensor
    unit: Tensor
    unit_in: Tensor
    unit_touching: Tensor
    label: Tensor
    pixels: Tensor
    pixels_in: Tensor
    images: Tensor

    @classmethod
    def empty(cls, units: int, labels: int, categories: int) -> "Tally":
        """Return sums over no image."""
        shapes = [(units, labels), (units,), (units, categories), (units, categories), (labels,), (), (categories,)]
        return cls(*(torch.zeros(shape, dtype=torch.int64) for shape in (*shapes, (labels,))))

    def add(self, other: "Tally") -> None:
        """Add the sums over other images."""
        for name, value in vars(other).items():
            getattr(self, name).add_(value)


@dataclass(frozen=True)
class Dissection:
    """What a dissection counted.

    Attributes:
        layers: layer to the slice of its units.
        share: of a unit's activations that exceed its threshold.
        thresholds: ``[U]``.
        tally: the sums.
        category: ``[L]`` category of each label, -1 for none.
    """

    layers: Mapping[str, slice]
    share: float
    thresholds: Tensor
    tally: Tally
    category: Tensor

    @property
    def tied(self) -> Tensor:
        """Units that are 0 in all but fewer places than the share, bool ``[U]``: their mask is where they are active.

        They get no label, as their threshold is not that of the others.
        """
        return self.thresholds <= 0

    def areas(self, denominator: Denominator) -> Tensor:
        """Return the pixels of each unit's mask that count with each label, int64 ``[U, L]``."""
        if denominator == "all":
            return self.tally.unit[:, None].expand_as(self.tally.both)
        of = {"category-images": self.tally.unit_in, "touched": self.tally.unit_touching}[denominator]
        return of[:, self.category.clamp(min=0)]

    def iou(self, denominator: Denominator) -> Tensor:
        """Return the IoU of each unit with each label, float64 ``[U, L]``; NaN where there is neither."""
        tally = self.tally
        return tally.both.double() / (self.areas(denominator) + tally.label - tally.both)

    def ceiling(self, denominator: Denominator) -> Tensor:
        """Return the highest IoU that each unit could have with each label, float64 ``[U, L]``; NaN without either.

        A mask of A pixels and a label of G have an IoU of at most min(A, G) / max(A, G), wherever they lie.
        """
        own = self.areas(denominator)
        label = self.tally.label.expand_as(own)
        return torch.minimum(own, label).double() / torch.maximum(own, label)


@dataclass
class Team:
    """The processes that share the images; alone where torch.distributed was not begun."""

    rank: int = field(default_factory=lambda: distributed.get_rank() if _is_begun() else 0)
    world: int = field(default_factory=lambda: distributed.get_world_size() if _is_begun() else 1)

    def share(self, count: int) -> range:
        """Return the numbers of this process's images."""
        return range(self.rank, count, self.world)

    def gather(self, own: object) -> list[object]:
        """Return what every process has, in the order of the ranks."""
        if self.world == 1:
            return [own]
        found: list[object] = [None] * self.world
        distributed.all_gather_object(found, own)
        return found


def _is_begun() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@torch.no_grad()
def dissect(
    classifier: Classifier,
    concepts: Concepts,
    layers: Sequence[str],
    share: float,
    axes: Mapping[str, Axis],
    batch_size: int = 16,
    team: Team | None = None,
    room: int = KEPT,
) -> Dissection:
    """Dissect units: two passes over the images for their thresholds, one for the sums.

    Args:
        classifier: in evaluation mode; computes in fp32.
        concepts: the images and their labels.
        layers: names.
        share: of a unit's activations that exceed its threshold, in (0, 1).
        axes: layer to where the pixels of label maps lie among its places.
        batch_size: images at once.
        team: the processes that share the work.
        room: activations that are kept, of the first images; those of the others are computed anew for each pass.

    Raises:
        DataError: an image or a label map cannot be read.
    """
    team = Team() if team is None else team
    numbers = team.share(len(concepts))

    kept: list[tuple[list[int], dict[str, Tensor]]] = []

    def maps(what: str) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        nonlocal room
        with tqdm(total=len(numbers), desc=what, unit="image", leave=False) as progress:
            known = sum(len(places) for places, _ in kept)
            for batch in kept[:]:
                yield batch
                progress.update(len(batch[0]))
            for places, images in concepts.batches(numbers[known:], batch_size):
                moved = images.to(classifier.mean.device)
                with full_precision(moved.device.type):
                    found = outputs(classifier, moved, layers)
                batch = (
                    places,
                    {name: as_maps(one, layouts(name, one, moved)).float().contiguous() for name, one in found.items()},
                )
                room -= sum(one.numel() for one in batch[1].values())
                if room >= 0:  # What is kept are the first batches: once it is full it stays so.
                    kept.append(batch)
                yield batch
                progress.update(len(places))

    seen: dict[tuple[str, torch.Size, torch.Size], Layout] = {}

    def layouts(name: str, output: Tensor, images: Tensor) -> Layout:
        key = (name, output.shape[1:], images.shape[2:])
        if key not in seen:
            seen[key] = layout_of(classifier, name, output, images)
        return seen[key]

    quantiles: dict[str, UpperQuantile] = {}
    for _, found in maps("counting activations"):
        for name, values in found.items():
            quantiles.setdefault(name, UpperQuantile(values.shape[1], share)).count(by_unit(values))
    quantiles = merged(team, quantiles)
    for quantile in quantiles.values():
        quantile.settle()
    for _, found in maps("thresholds"):
        for name, values in found.items():
            quantiles[name].keep(by_unit(values))
    quantiles = merged(team, quantiles)
    thresholds = {name: quantiles[name].thresholds() for name in layers}
    ends = np.cumsum([len(values) for values in thresholds.values()]).tolist()
    slices = {name: slice(end - len(thresholds[name]), end) for name, end in zip(layers, ends, strict=True)}
    category = torch.from_numpy(concepts.category)
    tally = Tally.empty(ends[-1], len(concepts.names), len(concepts.categories))
    for places, found in maps("comparing with labels"):
        for row, place in enumerate(places):
            of_image = {name: found[name][row] for name in layers}
            add_image(tally, of_image, thresholds, slices, concepts, category, place, axes)
    parts = team.gather(tally)
    total = Tally.empty(ends[-1], len(concepts.names), len(concepts.categories))
    for part in parts:
        assert isinstance(part, Tally)
        total.add(part)
    return Dissection(slices, share, torch.cat(list(thresholds.values())), total, category)


def by_unit(maps: Tensor) -> Tensor:
    """Return maps ``[B, C, H, W]`` as one row of values a unit, ``[C, B H W]``."""
    return maps.transpose(0, 1).flatten(1)


def merged(team: Team, quantiles: dict[str, UpperQuantile]) -> dict[str, UpperQuantile]:
    """Return what all processes have counted or kept; one with no images has nothing."""
    total: dict[str, UpperQuantile] = {}
    for part in team.gather(quantiles):
        assert isinstance(part, dict)
        for name, quantile in part.items():
            if name in total:
                total[name].merge(quantile)
            else:
                total[name] = quantile
    return total


def add_image(
    tally: Tally,
    maps: Mapping[str, Tensor],
    thresholds: Mapping[str, Tensor],
    slices: Mapping[str, slice],
    concepts: Concepts,
    category: Tensor,
    place: int,
    axes: Mapping[str, Axis],
) -> None:
    """Add one image to the sums.

    Args:
        tally: changed.
        maps: layer to ``[C, H, W]``.
        thresholds: layer to ``[C]``.
        slices: layer to its units in the tally.
        concepts: with the image's labels.
        category: ``[L]`` of each label.
        place: of the image.
        axes: layer to where the pixels of label maps lie among its places.
    """
    label_maps, whole = concepts.labels(place)
    size = (label_maps.shape[1], label_maps.shape[2])
    count = size[0] * size[1]
    marked = np.bincount(label_maps.reshape(-1), minlength=1)
    marked[0] = 0
    present = np.flatnonzero(marked)
    # Each pixel's place among the labels present, in each of the label maps; one past the last for no label.
    number = np.full(len(marked), len(present))
    number[present] = np.arange(len(present))
    numbers = torch.from_numpy(number[label_maps].reshape(len(label_maps), count))
    labels, scalars = torch.from_numpy(present), torch.tensor(list(whole), dtype=torch.int64)
    tally.label[labels] += torch.from_numpy(marked[present])
    tally.label[scalars] += count
    named = torch.cat([labels, scalars])
    tally.images[torch.unique(named)] += 1
    has = torch.zeros(len(tally.pixels_in), dtype=torch.bool)
    has[category[named][category[named] >= 0]] = True
    tally.pixels += count
    tally.pixels_in[has] += count
    of_label = torch.zeros(len(labels), len(has), dtype=torch.int64)
    inside = category[labels] >= 0
    of_label[inside, category[labels][inside]] = 1
    by_whole = torch.zeros_like(has)
    by_whole[category[scalars][category[scalars] >= 0]] = True
    for name, values in maps.items():
        area = torch.zeros(len(values), dtype=torch.int64)
        both = torch.zeros(len(values), len(labels) + 1, dtype=torch.int64)
        here = numbers.to(values.device)
        for units, pixels in passing(values, thresholds[name], size, axes[name]):
            area += torch.bincount(units, minlength=len(area)).cpu()
            # A pixel that two maps give the same label counts twice, as in the original.
            for one in here:
                codes = units * both.shape[1] + one[pixels]
                both += torch.bincount(codes, minlength=both.numel()).view_as(both).cpu()
        both = both[:, :-1]
        units_of = slices[name]
        tally.unit[units_of] += area
        tally.unit_in[units_of] += area[:, None] * has
        tally.unit_touching[units_of] += area[:, None] * ((both @ of_label > 0) | by_whole)
        tally.both[units_of, labels] += both
        tally.both[units_of, scalars] += area[:, None]
