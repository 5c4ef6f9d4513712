"""What a dissection says: each unit's concept, units by category and layer, diversity, and pictures; and twins."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_robust.analysis.concepts import Concepts
from lit_robust.analysis.dissection import Denominator, Dissection
from lit_robust.analysis.outcome import Outcome, grid
from lit_robust.analysis.quantiles import UpperQuantile
from lit_robust.analysis.upsampling import Axis, masks
from lit_robust.core.errors import DataError
from lit_robust.core.precision import full_precision
from lit_robust.core.results import Result
from lit_robust.metrics.intervals import mean_of
from lit_robust.models import Classifier
from lit_robust.models.taps import as_maps, layout_of, outputs

DIVERSE = 0.01  # IoU from which a concept counts for a unit's diversity (Chen, Agarwal & Nguyen 2020, section 3.3).


def labelled_study(
    dissection: Dissection,
    concepts: Concepts,
    denominator: Denominator,
    least_iou: float,
    protocol: Mapping[str, Any],
) -> Outcome:
    """Return a dissection's values a layer and a category, and a table of units and one of concepts.

    A unit's label is the concept of the highest IoU over all categories. It is a detector where that exceeds
    ``least_iou``. Its diversity is the number of concepts with an IoU of at least .01.

    Args:
        dissection: the sums.
        concepts: the images and their labels.
        denominator: of the IoU.
        least_iou: of a detector; the papers take .04.
        protocol: of the dissection, as plain values.
    """
    iou = dissection.iou(denominator).nan_to_num(0)
    iou[:, dissection.category < 0] = 0
    iou[dissection.tied] = 0
    best, label = iou.max(1)
    is_detector = best > least_iou
    diversity = (iou >= DIVERSE).sum(1)
    ceiling = dissection.ceiling(denominator).nan_to_num(0)
    ceiling[dissection.tied] = 0
    ceiling = ceiling.amax(0)
    about = {**protocol, "denominator": denominator, "least_iou": least_iou, "quantile": dissection.share}
    warnings = _warnings(dissection, concepts, ceiling, least_iou)
    results = []

    def add(measure: str, value: float, unit: str, count: int, facets: Mapping[str, Any], **more: Any) -> None:
        metric = "_".join([measure, *map(str, facets.values())])
        facets = {"measure": measure, **facets}
        results.append(Result("concepts", metric, value, unit, count, about, facets=facets, warnings=warnings, **more))

    slices = {"all": slice(0, len(best)), **dissection.layers}
    for layer, units in slices.items():
        count = units.stop - units.start
        kept, concept = is_detector[units], label[units]
        add("unique_concepts", len(torch.unique(concept[kept])), "count", count, {"layer": layer})
        add("tied_units", int(dissection.tied[units].sum()), "count", count, {"layer": layer})
        found = mean_of(diversity[units][~dissection.tied[units]])
        add("diversity", found.value, "count", found.count, {"layer": layer}, interval=found.interval)
        for place, category in enumerate(concepts.categories):
            facets = {"layer": layer, "category": category}
            own = kept & (dissection.category[concept] == place)
            add("detectors", int(own.sum()), "count", count, facets)
            of_category = dissection.category == place
            if of_category.any():
                most = mean_of(iou[units][:, of_category].amax(1))
                add("best_iou", most.value, "fraction", most.count, facets, interval=most.interval)
    return Outcome(
        results,
        {"iou": iou, "thresholds": dissection.thresholds, "ceiling": ceiling},
        {
            "units": _unit_rows(dissection, concepts, iou, diversity),
            "concepts": _concept_rows(dissection, concepts, iou, ceiling),
        },
    )


def _warnings(dissection: Dissection, concepts: Concepts, ceiling: Tensor, least_iou: float) -> tuple[str, ...]:
    seen = (dissection.tally.label > 0) & (dissection.category >= 0)
    out_of_reach = int((seen & (ceiling < least_iou)).sum())
    tied = int(dissection.tied.sum())
    found = []
    if out_of_reach:
        found.append(
            f"{out_of_reach} of {int(seen.sum())} concepts are so much larger or smaller than the masks of these units "
            f"that their IoU cannot reach {least_iou:g}, wherever the masks lie"
        )
    if tied:
        found.append(f"{tied} units are active in fewer places than the quantile's share, and have no label")
    return tuple(found)


def _unit_rows(dissection: Dissection, concepts: Concepts, iou: Tensor, diversity: Tensor) -> list[dict[str, Any]]:
    rows = []
    for layer, units in dissection.layers.items():
        for unit, place in enumerate(range(units.start, units.stop)):
            best, label = (float(iou[place].max()), int(iou[place].argmax()))
            category = int(dissection.category[label])
            rows.append(
                {
                    "layer": layer,
                    "unit": unit,
                    "concept": concepts.names[label] if best > 0 else "",
                    "category": concepts.categories[category] if best > 0 and category >= 0 else "",
                    "iou": round(best, 6),
                    "diversity": int(diversity[place]),
                    "threshold": float(dissection.thresholds[place]),
                    "tied": int(dissection.tied[place]),
                }
            )
    return rows


def _concept_rows(dissection: Dissection, concepts: Concepts, iou: Tensor, ceiling: Tensor) -> list[dict[str, Any]]:
    rows = []
    for label, name in enumerate(concepts.names):
        category = int(dissection.category[label])
        if category < 0 or not int(dissection.tally.label[label]):
            continue
        rows.append(
            {
                "number": label,
                "concept": name,
                "category": concepts.categories[category],
                "images": int(dissection.tally.images[label]),
                "pixels": int(dissection.tally.label[label]),
                "ceiling": round(float(ceiling[label]), 6),
                "best_iou": round(float(iou[:, label].max()), 6),
                "best_unit": int(iou[:, label].argmax()),
            }
        )
    return rows


@torch.no_grad()
def unit_pictures(
    classifier: Classifier,
    concepts: Concepts,
    dissection: Dissection,
    denominator: Denominator,
    axes: Mapping[str, Axis],
    units: int = 4,
    images: int = 8,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return for each layer the units of the highest IoU: the images that excite them most, bright in their masks.

    Args:
        classifier: in evaluation mode.
        concepts: the images and their labels.
        dissection: of the network.
        denominator: of the IoU.
        axes: layer to where the pixels of a picture lie among its places.
        units: rows a layer.
        images: a row.

    Returns:
        Pictures and their captions, by name.
    """
    iou = dissection.iou(denominator).nan_to_num(0)
    iou[:, dissection.category < 0] = 0
    iou[dissection.tied] = 0
    best, label = iou.max(1)
    chosen = {
        layer: best[rows].topk(min(units, rows.stop - rows.start)).indices for layer, rows in dissection.layers.items()
    }
    peaks: dict[str, list[Tensor]] = {layer: [] for layer in chosen}
    for _, batch in concepts.batches(range(len(concepts)), 16):
        moved = batch.to(classifier.mean.device)
        for layer, output in outputs(classifier, moved, list(chosen)).items():
            maps = as_maps(output, layout_of(classifier, layer, output, moved))
            peaks[layer].append(maps[:, chosen[layer].to(maps.device)].flatten(2).amax(2).cpu())
    pictures, captions = {}, {}
    for layer, rows in dissection.layers.items():
        shown, words = [], []
        for unit, peak in zip(chosen[layer].tolist(), torch.cat(peaks[layer]).T, strict=True):
            place = rows.start + unit
            for number in peak.topk(min(images, len(peak))).indices.tolist():
                image = concepts.pixels(number).float().div(255).to(classifier.mean.device)[None]
                output = outputs(classifier, image, [layer])[layer]
                maps = as_maps(output, layout_of(classifier, layer, output, image))[0, unit, None].float()
                limit = dissection.thresholds[place, None]
                mask = masks(maps, limit, (image.shape[2], image.shape[3]), axes[layer])
                shown.append((image * torch.where(mask, 1.0, 0.3)).cpu())
            words.append(f"{unit} {concepts.names[int(label[place])]} ({float(best[place]):.3f})")
        if len({image.shape for image in shown}) == 1:
            pictures[f"units-{layer}"] = grid(torch.cat(shown), min(images, len(concepts)))
            captions[f"units-{layer}"] = f"{layer}: units with their concept and IoU: {', '.join(words)}; a row each"
    return pictures, captions


@torch.no_grad()
def twin_overlap(
    classifier: Classifier, concepts: Concepts, twins: Path, layers: Sequence[str], share: float
) -> dict[str, Tensor]:
    """Return how far each unit's mask stays where it is when an image's texture is another.

    It is the IoU, over all images, of the unit's mask on an image and its mask on the image's twin, where each exceeds
    the value that ``share`` of its activations on the images exceeds. A unit that reads outlines alone has 1, one that
    follows the texture about share / 2. Masks are those of the maps as the layer gives them.

    Args:
        classifier: in evaluation mode.
        concepts: the images.
        twins: folder of images of the same names.
        layers: names.
        share: such as .01.

    Returns:
        Layer to float64 ``[C]``; NaN for a unit that is 0 in all but fewer places.

    Raises:
        DataError: an image has no twin.
    """
    paired = []
    for one in concepts.images:
        twin = twins / one.image.relative_to(concepts.folder / "images")
        if not twin.is_file():
            raise DataError(f"{one.image} has no twin {twin}: give a folder with an image for each.")
        paired.append(type(one)(twin, (), (), None))
    others = Concepts(concepts.folder, concepts.names, concepts.categories, concepts.category, paired)

    def maps(images: Tensor) -> dict[str, Tensor]:
        moved = images.to(classifier.mean.device)
        with full_precision(moved.device.type):
            found = outputs(classifier, moved, layers)
        return {
            name: as_maps(one, layout_of(classifier, name, one, moved)).float().cpu() for name, one in found.items()
        }

    quantiles: dict[str, UpperQuantile] = {}
    numbers = range(len(concepts))
    for _, images in concepts.batches(numbers, 16):
        for name, values in maps(images).items():
            quantiles.setdefault(name, UpperQuantile(values.shape[1], share)).count(values)
    for quantile in quantiles.values():
        quantile.settle()
    for _, images in concepts.batches(numbers, 16):
        for name, values in maps(images).items():
            quantiles[name].keep(values)
    limits = {name: quantile.thresholds() for name, quantile in quantiles.items()}
    sums = {name: torch.zeros(2, len(limit), dtype=torch.int64) for name, limit in limits.items()}
    for (_, first), (_, second) in zip(concepts.batches(numbers, 16), others.batches(numbers, 16), strict=True):
        of_second = maps(second)
        for name, values in maps(first).items():
            limit = limits[name][:, None, None]
            here, there = values > limit, of_second[name] > limit
            sums[name] += torch.stack([(here & there).sum((0, 2, 3)), (here | there).sum((0, 2, 3))])
    return {name: torch.where(limits[name] > 0, both[0].double() / both[1], torch.nan) for name, both in sums.items()}


def twin_results(overlap: Mapping[str, Tensor], share: float, protocol: Mapping[str, Any]) -> list[Result]:
    """Return the mean overlap with twins of each layer's units, with its interval over the units."""
    results = []
    for layer, values in overlap.items():
        found = mean_of(values)
        about = {**protocol, "quantile": share, "twins": "the same images with another texture"}
        facets = {"measure": "twin_overlap", "layer": layer}
        metric = f"twin_overlap_{layer}"
        one = Result("concepts", metric, found.value, "fraction", found.count, about, found.interval, facets)
        results.append(one)
    return results
