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
from torch.nn import functional
from tqdm import tqdm

from lit_robust.analysis.concepts import Concepts
from lit_robust.analysis.quantiles import UpperQuantile
from lit_robust.analysis.upsampling import Axis, passing
from lit_robust.core.precision import full_precision
from lit_robust.models import Classifier
from lit_robust.models.taps import Layout, as_maps, layout_of, outputs, with_calls

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
    names: dict[str, str] = {}

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
                    names.update({} if names else with_calls(classifier, moved[:1], layers))
                    given = outputs(classifier, moved, list(names.values()))
                found = {layer: given[name] for layer, name in names.items()}
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
            quantiles.setdefault(name, UpperQuantile(values.shape[1], share)).count(values)
    quantiles = merged(team, quantiles)
    for quantile in quantiles.values():
        quantile.settle()
    for _, found in maps("thresholds"):
        for name, values in found.items():
            quantiles[name].keep(values)
    quantiles = merged(team, quantiles)
    thresholds = {name: quantiles[name].thresholds() for name in layers}
    ends = np.cumsum([len(values) for values in thresholds.values()]).tolist()
    slices = {name: slice(end - len(thresholds[name]), end) for name, end in zip(layers, ends, strict=True)}
    category = torch.from_numpy(concepts.category)
    tally = Tally.empty(ends[-1], len(concepts.names), len(concepts.categories))
    for places, found in maps("comparing with labels"):
        add_images(tally, found, thresholds, slices, [Labels.of(concepts, place) for place in places], category, axes)
    parts = team.gather(tally)
    total = Tally.empty(ends[-1], len(concepts.names), len(concepts.categories))
    for part in parts:
        assert isinstance(part, Tally)
        total.add(part)
    return Dissection(slices, share, torch.cat(list(thresholds.values())), total, category)


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


@dataclass(frozen=True)
class Labels:
    """The labels of one image's pixels.

    Attributes:
        size: height and width of its label maps.
        joint: int64 ``[pixels]``, which combination of labels a pixel has in the image's maps.
        marks: float64 ``[J, N]``, how many of the maps give a combination each of the image's labels.
        labels: int64 ``[N]``.
        whole: int64 ``[M]``, labels of the whole image.
    """

    size: tuple[int, int]
    joint: Tensor
    marks: Tensor
    labels: Tensor
    whole: Tensor

    def cumulated(self) -> Tensor:
        """Return how many of the pixels before each have a combination, float64 ``[pixels + 1, J]``."""
        table = torch.zeros(len(self.joint) + 1, len(self.marks), dtype=torch.float64)
        table[torch.arange(1, len(table)), self.joint] = 1
        return table.cumsum_(0)

    @classmethod
    def of(cls, concepts: Concepts, number: int) -> "Labels":
        """Read those of an image."""
        maps, whole = concepts.labels(number)
        joint = np.zeros(maps.shape[1] * maps.shape[2], dtype=np.int64)
        combined = np.zeros((1, 0), dtype=np.int64)
        for one in maps:
            most = int(one.max(initial=0)) + 1
            codes = joint * most + one.reshape(-1)
            present = np.flatnonzero(np.bincount(codes))
            place = np.zeros(len(combined) * most, dtype=np.int64)
            place[present] = np.arange(len(present))
            joint, combined = place[codes], np.column_stack([combined[present // most], present % most])
        labels = np.unique(combined[combined > 0])
        marks = (combined[:, :, None] == labels).sum(1)
        of_whole = torch.tensor(list(whole), dtype=torch.int64)
        size = (maps.shape[1], maps.shape[2])
        return cls(
            size, torch.from_numpy(joint), torch.from_numpy(marks.astype(float)), torch.from_numpy(labels), of_whole
        )


def add_images(
    tally: Tally,
    maps: Mapping[str, Tensor],
    thresholds: Mapping[str, Tensor],
    slices: Mapping[str, slice],
    images: Sequence[Labels],
    category: Tensor,
    axes: Mapping[str, Axis],
) -> None:
    """Add images to the sums.

    Args:
        tally: changed.
        maps: layer to ``[B, C, H, W]``.
        thresholds: layer to ``[C]``.
        slices: layer to its units in the tally.
        images: their labels.
        category: ``[L]`` of each label.
        axes: layer to where the pixels of label maps lie among its places.
    """
    none = torch.zeros(3, 0, dtype=torch.int64, device=next(iter(maps.values())).device)
    for row, image in enumerate(images):
        runs = [tuple(none)]
        for name, units in slices.items():
            for unit, first, count in passing(maps[name][row], thresholds[name], image.size, axes[name]):
                runs.append((unit + units.start, first, count))
        unit, first, count = (torch.cat(parts) for parts in zip(*runs, strict=True))
        _add_units(tally, _counts(len(tally.unit), unit, first, count, image), image, category)


def _counts(units: int, unit: Tensor, first: Tensor, count: Tensor, image: Labels) -> Tensor:
    """Return the pixels of each unit's mask by combination of labels, float64 whole numbers ``[U, J]``."""
    table = image.cumulated().to(unit.device)
    bags = torch.searchsorted(unit, torch.arange(units, device=unit.device))
    # Sums of whole numbers below 2^53: exact.
    ends = functional.embedding_bag(first + count, table, bags, mode="sum")
    return (ends - functional.embedding_bag(first, table, bags, mode="sum")).cpu()


def _add_labels(tally: Tally, image: Labels, category: Tensor) -> tuple[Tensor, Tensor]:
    """Add what an image has of each label; return which categories it has, and which by a label of the whole."""
    pixels = len(image.joint)
    of_joint = torch.bincount(image.joint, minlength=len(image.marks)).double()
    tally.label[image.labels] += (of_joint @ image.marks).long()
    tally.label[image.whole] += pixels
    named = torch.cat([image.labels, image.whole])
    tally.images[torch.unique(named)] += 1
    has, by_whole = (torch.zeros(len(tally.pixels_in), dtype=torch.bool) for _ in range(2))
    has[category[named][category[named] >= 0]] = True
    by_whole[category[image.whole][category[image.whole] >= 0]] = True
    tally.pixels += pixels
    tally.pixels_in[has] += pixels
    return has, by_whole


def _add_units(tally: Tally, counts: Tensor, image: Labels, category: Tensor) -> None:
    """Add how many pixels of each combination of an image's labels lie in the masks of all units, ``[U, J]``."""
    has, by_whole = _add_labels(tally, image, category)
    area = counts.sum(1).long()
    both = (counts @ image.marks).long()
    touching = by_whole.repeat(len(area), 1)
    own = category[image.labels]
    for place in torch.unique(own[own >= 0]).tolist():
        touching[:, place] |= both[:, own == place].any(1)
    tally.unit += area
    tally.unit_in += area[:, None] * has
    tally.unit_touching += area[:, None] * touching
    tally.both[:, image.labels] += both
    tally.both[:, image.whole] += area[:, None]
