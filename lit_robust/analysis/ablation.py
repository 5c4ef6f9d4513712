"""Shape and Texture score of every unit (Chen, Agarwal & Nguyen 2020, section 3.4): what zeroing a channel changes.

The Shape score of a unit is the number of cue-conflict images decided for their shape whose decision among the
categories becomes any other one when the unit's output is zero; the Texture score likewise. Both are exact here: what
comes before a layer runs once an image, images decided for neither cannot count, a unit that is zero everywhere changes
nothing, and before mean pooling and a linear head the change has a closed form.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from lit_robust.analysis.images import Conflict
from lit_robust.analysis.outcome import Outcome, grid
from lit_robust.analysis.pictures import Points, scatter
from lit_robust.analysis.replay import pooled_head, record
from lit_robust.analysis.smoothness import total_variation
from lit_robust.core.files import write_tensors
from lit_robust.core.precision import full_precision
from lit_robust.core.results import Result
from lit_robust.metrics.intervals import mean_of, rank_correlation
from lit_robust.metrics.shape_bias import Aggregation, category_probabilities
from lit_robust.models import Classifier
from lit_robust.models.taps import as_maps, channel_axis, layout_of, outputs

Decide = Callable[[Tensor], Tensor]
Numbers = NDArray[np.int64]
UNITS_AT_ONCE = 32
SAVE_EVERY = 20  # images; so much work an interruption loses at most.


@torch.no_grad()
def changed_decisions(
    classifier: Classifier, image: Tensor, layers: Sequence[str], decide: Decide, units_at_once: int = UNITS_AT_ONCE
) -> dict[str, Tensor]:
    """Return for every unit whether an image is decided otherwise when the unit's output is zero.

    Args:
        classifier: in evaluation mode; computes in fp32, as ties would flip decisions.
        image: float ``[1, 3, H, W]`` in [0, 1].
        layers: names.
        decide: logits ``[B, num_classes]`` to decisions ``[B]``.
        units_at_once: whose consequences are computed in one batch; no result depends on it.

    Returns:
        Layer to bool ``[C]``.
    """
    found = {}
    with full_precision(image.device.type):
        recording = record(classifier, image)
        decided = decide(recording.logits)
        for layer in layers:
            output = recording.call_of(layer).output
            axis = channel_axis(layout_of(classifier, layer, output, image))
            values = output.movedim(axis, 1)[0]
            alive = values.flatten(1).ne(0).any(1).nonzero()[:, 0]
            flipped = torch.zeros(len(values), dtype=torch.bool, device=image.device)
            if (head := pooled_head(recording, layer)) is not None:
                means, weights = head
                flipped[alive] = decide(recording.logits - (weights * means).T[alive]) != decided
            else:
                for units in alive.split(units_at_once):
                    without = output.repeat(len(units), *[1] * (output.ndim - 1))
                    without.movedim(axis, 1)[torch.arange(len(units)), units] = 0
                    flipped[units] = decide(recording.rest(layer, without)) != decided
            found[layer] = flipped
    return found


@dataclass(frozen=True)
class Scores:
    """What zeroing each unit changed.

    Attributes:
        shape: layer to int64 ``[C]``, the Shape scores.
        texture: layer to int64 ``[C]``, the Texture scores.
        decided: int64 ``[N]``: 1 decided for the shape, 2 for the texture, 0 for neither.
    """

    shape: dict[str, Tensor]
    texture: dict[str, Tensor]
    decided: Tensor


def unit_scores(
    classifier: Classifier,
    conflict: Conflict,
    layers: Sequence[str],
    aggregation: Aggregation = "mean",
    partial: Path | None = None,
    identity: str = "",
) -> Scores:
    """Return the Shape and Texture scores of all units of some layers.

    Args:
        classifier: in evaluation mode.
        conflict: the images.
        layers: names.
        aggregation: how a category's probability follows from its classes'.
        partial: file that keeps what is done, for a later call; None keeps nothing.
        identity: text of all that the scores follow from: a file of another is begun anew.
    """
    device = classifier.mean.device

    def decide(logits: Tensor) -> Tensor:
        return category_probabilities(logits, conflict.categories, aggregation).argmax(1)

    count = len(conflict.shapes)
    state = _begin(partial, identity, count)
    first = conflict.images(0).to(device)
    with torch.no_grad():
        found = outputs(classifier, first, layers)
    for layer, output in found.items():
        units = output.shape[channel_axis(layout_of(classifier, layer, output, first))]
        for kind in ("shape", "texture"):
            state.setdefault(f"{kind} {layer}", torch.zeros(units, dtype=torch.int64))
    with tqdm(total=count, initial=int(state["done"]), desc="ablating units", unit="image") as progress:
        for place in range(int(state["done"]), count):
            image = conflict.images(place).to(device)
            with torch.no_grad(), full_precision(device.type):
                answer = int(decide(classifier(image)))
            shape, texture = int(conflict.shapes[place]), int(conflict.textures[place])
            if shape != texture and answer in (shape, texture):
                state["decided"][place] = 1 if answer == shape else 2
                kind = "shape" if answer == shape else "texture"
                for layer, flipped in changed_decisions(classifier, image, layers, decide).items():
                    state[f"{kind} {layer}"] += flipped.cpu()
            state["done"] += 1
            progress.update()
            if partial is not None and (place + 1) % SAVE_EVERY == 0:
                write_tensors(partial, state, {"identity": identity})
    shapes, textures = ({layer: state[f"{kind} {layer}"] for layer in layers} for kind in ("shape", "texture"))
    return Scores(shapes, textures, state["decided"])


def _begin(partial: Path | None, identity: str, count: int) -> dict[str, Tensor]:
    if partial is not None and partial.is_file():
        try:
            with safe_open(partial, "pt") as file:
                if (file.metadata() or {}).get("identity") == identity:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError:
            pass  # Not whole: what it held is computed again.
    return {"done": torch.zeros((), dtype=torch.int64), "decided": torch.zeros(count, dtype=torch.int64)}


def identity_of(*parts: object) -> str:
    """Return a digest of plain values."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def scores_study(
    classifier: Classifier,
    conflict: Conflict,
    scores: Scores,
    aggregation: Aggregation,
    labels: Mapping[tuple[str, int], tuple[str, str, float]] | None = None,
    least_iou: float = 0.04,
    excite: int = 6,
) -> Outcome:
    """Return the scores as values a layer and a category of the units' concepts, with the units that matter most.

    Args:
        classifier: the network.
        conflict: the images.
        scores: of the network's units.
        aggregation: how decisions were taken.
        labels: layer and unit (from 0) to concept, category and IoU of a dissection; None without one.
        least_iou: of the units that count as labelled; the paper states none, its code .04.
        excite: units of each layer whose strongest images are shown.
    """
    shapes, textures = int((scores.decided == 1).sum()), int((scores.decided == 2).sum())
    protocol = {**conflict.protocol, "aggregation": aggregation, "shape_decisions": shapes}
    protocol |= {"texture_decisions": textures, "decided_otherwise": "any other category", "output": "zero"}
    results: list[Result] = []
    rows: list[dict[str, Any]] = []
    exciting = _exciting(classifier, conflict, scores, excite)
    for layer in scores.shape:
        pair = {"shape": scores.shape[layer], "texture": scores.texture[layer]}
        for kind, values in pair.items():
            results.append(_mean(f"{kind}_score", values, protocol, {"layer": layer}))
        series = {**pair, "map_tv": exciting.variation[layer]}
        for one, other in combinations(series, 2):
            found = rank_correlation(series[one].double(), series[other].double())
            facets = {"measure": "score_correlation", "layer": layer, "variant": f"{one}, {other}"}
            metric, about = f"score_correlation_{layer}_{one}_{other}", {**protocol, "correlation": "Spearman"}
            results.append(
                Result("cue-conflict", metric, found.value, "ratio", found.count, about, found.interval, facets)
            )
        for unit in range(len(pair["shape"])):
            concept, category, iou = (labels or {}).get((layer, unit), ("", "", 0.0))
            row = {"layer": layer, "unit": unit, "shape_score": int(pair["shape"][unit])}
            row |= {"texture_score": int(pair["texture"][unit]), "map_tv": float(exciting.variation[layer][unit])}
            rows.append(row | ({"concept": concept, "category": category, "iou": iou} if labels else {}))
    if labels:
        about = {**protocol, "least_iou": least_iou}
        named = [row for row in rows if row["iou"] >= least_iou and row["category"]]
        for category in ("all", *sorted({str(row["category"]) for row in named})):
            kept = [row for row in named if category in ("all", row["category"])]
            for kind in ("shape_score", "texture_score"):
                values = torch.tensor([row[kind] for row in kept])
                results.append(_mean(kind, values, about, {"category": category}))
    arrays = {f"{kind} {layer}": t for kind in ("shape", "texture") for layer, t in getattr(scores, kind).items()}
    ways = {"texture": (scores.texture, "Texture score"), "map TV": (exciting.variation, "total variation of its map")}
    panels = {
        f"{layer}, {way}": Points(across, up[layer], ("Shape score of a unit", name))
        for way, (up, name) in ways.items()
        for layer, across in scores.shape.items()
    }
    pictures = {"scores": scatter(panels), **exciting.pictures}
    captions = {"scores": "each unit's Texture score, and the total variation of its maps, over its Shape score"}
    return Outcome(
        results, arrays | {"decided": scores.decided}, {"units": rows}, pictures, captions | exciting.captions
    )


def _mean(measure: str, values: Tensor, protocol: Mapping[str, Any], facets: Mapping[str, Any]) -> Result:
    found = mean_of(values)
    return Result(
        dataset="cue-conflict",
        metric="_".join([measure, *map(str, facets.values())]),
        value=found.value,
        unit="count",
        count=found.count,
        protocol={**protocol, "mean_over": "units"},
        interval=found.interval,
        facets={"measure": measure, **facets},
    )


@dataclass(frozen=True)
class _Exciting:
    """The images that excite units most, and how smooth units' maps are.

    Attributes:
        variation: layer to ``[C]``, the mean over all images of the total variation of a unit's map.
        pictures: by name.
        captions: by name.
    """

    variation: dict[str, Tensor]
    pictures: dict[str, Any]
    captions: dict[str, str]


@torch.no_grad()
def _exciting(classifier: Classifier, conflict: Conflict, scores: Scores, count: int, images: int = 8) -> _Exciting:
    """Return for each layer the images that excite its units of the highest scores most, a row a unit."""
    device = classifier.mean.device
    units = {layer: (s + scores.texture[layer]).topk(min(count, len(s))).indices for layer, s in scores.shape.items()}
    peaks: dict[str, list[Tensor]] = {layer: [] for layer in units}
    variation = {layer: torch.zeros(len(score), dtype=torch.float64) for layer, score in scores.shape.items()}
    for place in range(len(conflict.shapes)):
        image = conflict.images(place).to(device)
        with full_precision(device.type):
            found = outputs(classifier, image, list(units))
        for layer, output in found.items():
            maps = as_maps(output, layout_of(classifier, layer, output, image))[0]
            peaks[layer].append(maps[units[layer].to(device)].flatten(1).amax(1).cpu())
            variation[layer] += total_variation(maps).cpu() / len(conflict.shapes)
    pictures, captions = {}, {}
    for layer, of_images in peaks.items():
        best = torch.stack(of_images, 1).topk(min(images, len(of_images)), 1).indices
        rows = torch.cat([torch.cat([conflict.images(int(place)) for place in row]) for row in best])
        pictures[f"exciting-{layer}"] = grid(rows, best.shape[1])
        words = [
            f"{int(u)} (Shape {int(scores.shape[layer][u])}, Texture {int(scores.texture[layer][u])})"
            for u in units[layer]
        ]
        captions[f"exciting-{layer}"] = f"{layer}: the images that excite units {', '.join(words)} most, a row each"
    return _Exciting(variation, pictures, captions)
