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
from lit_robust.analysis.upsampling import Upsample
from lit_robust.core.precision import full_precision
from lit_robust.models import Classifier
from lit_robust.models.taps import Layout, as_maps, layout_of, outputs

# category-images: those that have a pixel of the concept's category, as in the original; touched: those in which the
# unit's own mask touches the category, as in NetDissect-Lite and so in Chen, Agarwal & Nguyen (2020), which leaves out
# images that the unit gets wholly wrong and is never lower; all: every image, as in davidbau/dissect.
Denominator = Literal["category-images", "touched", "all"]
UPSAMPLED_AT_ONCE = 1 << 23  # values; 32 MiB.


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

    def iou(self, denominator: Denominator) -> Tensor:
        """Return the IoU of each unit with each label, float64 ``[U, L]``; NaN where there is neither."""
        tally = self.tally
        areas = {"category-images": tally.unit_in, "touched": tally.unit_touching}
        own = tally.unit[:, None].expand_as(tally.both)
        if denominator in areas:
            own = areas[denominator][:, self.category.clamp(min=0)]
        return tally.both.double() / (own + tally.label - tally.both)

    def ceiling(self) -> Tensor:
        """Return the nominal highest IoU of a unit with each label, float64 ``[L]``: by their shares of the pixels.

        With a threshold that a share q exceeds, and a concept that covers the share g of its category's images, it is
        min(q / g, g / q). That is for a unit whose share on these images is q, too; one with another share can exceed
        it.
        """
        covered = self.tally.label / self.tally.pixels_in[self.category.clamp(min=0)].double()
        return torch.minimum(self.share / covered, covered / self.share)


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
    upsample: Mapping[str, Upsample],
    batch_size: int = 16,
    team: Team | None = None,
) -> Dissection:
    """Dissect units: two passes over the images for their thresholds, one for the sums.

    Args:
        classifier: in evaluation mode; computes in fp32.
        concepts: the images and their labels.
        layers: names.
        share: of a unit's activations that exceed its threshold, in (0, 1).
        upsample: layer to what brings its maps to the size of label maps.
        batch_size: images at once.
        team: the processes that share the work.

    Raises:
        DataError: an image or a label map cannot be read.
    """
    team = Team() if team is None else team
    numbers = team.share(len(concepts))

    def maps(what: str) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        with tqdm(total=len(numbers), desc=what, unit="image", leave=False) as progress:
            for places, images in concepts.batches(numbers, batch_size):
                moved = images.to(classifier.mean.device)
                with full_precision(moved.device.type):
                    found = outputs(classifier, moved, layers)
                yield places, {name: as_maps(one, layouts(name, one, moved)).float() for name, one in found.items()}
                progress.update(len(places))

    known: dict[tuple[str, torch.Size, torch.Size], Layout] = {}

    def layouts(name: str, output: Tensor, images: Tensor) -> Layout:
        key = (name, output.shape[1:], images.shape[2:])
        if key not in known:
            known[key] = layout_of(classifier, name, output, images)
        return known[key]

    quantiles: dict[str, UpperQuantile] = {}
    for _, found in maps("counting activations"):
        for name, values in found.items():
            quantiles.setdefault(name, UpperQuantile(values.shape[1], share)).count(by_unit(values))
    merged(team, quantiles)
    for quantile in quantiles.values():
        quantile.settle()
    for _, found in maps("thresholds"):
        for name, values in found.items():
            quantiles[name].keep(by_unit(values))
    merged(team, quantiles)
    thresholds = {name: quantiles[name].thresholds() for name in layers}
    ends = np.cumsum([len(values) for values in thresholds.values()]).tolist()
    slices = {name: slice(end - len(thresholds[name]), end) for name, end in zip(layers, ends, strict=True)}
    category = torch.from_numpy(concepts.category)
    tally = Tally.empty(ends[-1], len(concepts.names), len(concepts.categories))
    for places, found in maps("comparing with labels"):
        for row, place in enumerate(places):
            of_image = {name: found[name][row] for name in layers}
            add_image(tally, of_image, thresholds, slices, concepts, category, place, upsample)
    parts = team.gather(tally)
    total = Tally.empty(ends[-1], len(concepts.names), len(concepts.categories))
    for part in parts:
        assert isinstance(part, Tally)
        total.add(part)
    return Dissection(slices, share, torch.cat(list(thresholds.values())), total, category)


def by_unit(maps: Tensor) -> Tensor:
    """Return maps ``[B, C, H, W]`` as one row of values a unit, ``[C, B H W]``."""
    return maps.transpose(0, 1).flatten(1)


def merged(team: Team, quantiles: dict[str, UpperQuantile]) -> None:
    """Let every process have what all have counted or kept."""
    if team.world == 1:
        return
    parts = team.gather(quantiles)
    for name, quantile in quantiles.items():
        for rank, part in enumerate(parts):
            if rank != team.rank:
                assert isinstance(part, dict)
                quantile.merge(part[name])


def add_image(
    tally: Tally,
    maps: Mapping[str, Tensor],
    thresholds: Mapping[str, Tensor],
    slices: Mapping[str, slice],
    concepts: Concepts,
    category: Tensor,
    place: int,
    upsample: Mapping[str, Upsample],
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
        upsample: layer to what brings maps to the labels' size.
    """
    label_maps, whole = concepts.labels(place)
    size = (label_maps.shape[1], label_maps.shape[2])
    present, inverse = np.unique(label_maps, return_inverse=True)
    count = size[0] * size[1]
    # One row a label, one column a pixel; a pixel that two maps give the same label counts twice, as in the original.
    rows = np.zeros((len(present), count), dtype=np.float32)
    np.add.at(rows, (inverse.reshape(-1), np.tile(np.arange(count), len(label_maps))), 1)
    kept = present > 0
    labels, marks = torch.from_numpy(present[kept]), torch.from_numpy(rows[kept])
    scalars = torch.tensor(list(whole), dtype=torch.int64)
    tally.label[labels] += marks.sum(1).long()
    tally.label[scalars] += count
    named = torch.cat([labels, scalars])
    tally.images[torch.unique(named)] += 1
    has = torch.zeros(len(tally.pixels_in), dtype=torch.bool)
    has[category[named][category[named] >= 0]] = True
    tally.pixels += count
    tally.pixels_in[has] += count
    of_label = torch.zeros(len(labels), len(has))
    inside = category[labels] >= 0
    of_label[inside, category[labels][inside]] = 1
    by_whole = torch.zeros_like(has)
    by_whole[category[scalars][category[scalars] >= 0]] = True
    for name, values in maps.items():
        limit = thresholds[name].to(values.device)
        # Interpolation exceeds no value that it is between.
        passing = (values.flatten(1).amax(1) > limit).nonzero()[:, 0]
        marked = marks.to(values.device)
        for units in torch.split(passing, max(UPSAMPLED_AT_ONCE // count, 1)) if len(passing) else ():
            mask = (upsample[name](values[units][None], size)[0] > limit[units, None, None]).flatten(1)
            area = mask.sum(1).cpu()
            both = (mask.float() @ marked.T).round().cpu()  # Whole numbers below 2^24: exact.
            place_of = units.cpu() + slices[name].start
            tally.unit[place_of] += area
            tally.unit_in[place_of] += area[:, None] * has
            touching = ((both @ of_label) > 0) | by_whole
            tally.unit_touching[place_of] += area[:, None] * touching
            tally.both[place_of[:, None], labels] += both.long()
            tally.both[place_of[:, None], scalars] += area[:, None]
