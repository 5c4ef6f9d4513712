"""The study of smoothness: weights, maps for clean and noisy images, gradients, and the filters of two networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.analysis.images import Images
from lit_robust.analysis.outcome import Outcome, Picture, grid
from lit_robust.analysis.pictures import Points, labelled_grid, scatter
from lit_robust.analysis.smoothness import (
    MapVariation,
    gradient_roughness,
    loss_gradients,
    map_variation,
    matched_filters,
    weight_variation,
    weighted_mean,
)
from lit_robust.core.results import Result
from lit_robust.metrics.intervals import mean_of
from lit_robust.models import Classifier
from lit_robust.models.taps import named_layers


def weight_results(classifier: Classifier) -> list[Result]:
    """Return the total variation of a network's weights, a layer and over all, as Table 4 of the paper has it."""
    layers = weight_variation(classifier)
    units = sum(len(one.of_channels) for one in layers)
    results = []

    def add(measure: str, value: float, count: int, facets: Mapping[str, Any], **about: Any) -> None:
        metric = "_".join([measure, *map(str, facets.values())])
        results.append(
            Result("weights", metric, value, "variation", count, about, facets={"measure": measure, **facets})
        )

    for one in layers:
        count, facets = len(one.of_channels), {"layer": one.layer}
        add("weight_tv", float(one.of_channels.mean()), count, facets, over_inputs="sum", kernel=list(one.kernel))
        add("weight_tv_of_l1", one.normalised, count, facets, per="sum of absolute weights", kernel=list(one.kernel))
    points = any(one.kernel == (1, 1) for one in layers)
    for over, mean_over_inputs in (("sum", False), ("mean", True)):
        for with_points in (True, False) if points else (True,):
            kernels = "all" if with_points else "without 1x1"
            value = weighted_mean(layers, mean_over_inputs, with_points)
            add("weight_tv_mean", value, units, {"variant": f"{over} over inputs, kernels {kernels}"})
    return results


def filters_picture(classifier: Classifier, zoom: int = 4) -> Picture | None:
    """Return the filters of the first convolution of colours, each between its least and greatest weight."""
    first = next((m for m in named_layers(classifier).values() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.weight.shape[1] != 3 or min(first.weight.shape[2:]) < 2:
        return None
    weights = first.weight.detach().float().cpu()
    low, high = weights.amin((1, 2, 3), keepdim=True), weights.amax((1, 2, 3), keepdim=True)
    return grid((weights - low) / (high - low).clamp(min=1e-12), 16, zoom)


def map_results(
    found: Mapping[str, MapVariation], count: int, dataset: str, protocol: Mapping[str, Any]
) -> list[Result]:
    """Return for each layer the variation of clean and noisy maps, and how they compare."""
    results = []
    for layer, one in found.items():
        facets = {"layer": layer}
        for kind, values in (("clean", one.clean), ("noisy", one.noisy)):
            mean, about = mean_of(values), {**protocol, "mean_over": "channels", "images": count}
            for measure, scale in (("map_tv", 1.0), ("map_tv_per_difference", 1.0 / max(one.differences, 1))):
                ends = None if mean.interval is None else (mean.interval[0] * scale, mean.interval[1] * scale)
                named = {"measure": measure, **facets, "variant": kind}
                metric = f"{measure}_{layer}_{kind}"
                one_result = Result(dataset, metric, mean.value * scale, "variation", count, about, ends, named)
                results.append(one_result)
        ratio = mean_of(one.log_ratios)
        near = float((one.log_ratios.abs() < torch.tensor(1.05).log()).double().mean())
        for measure, value, interval in (
            ("noise_log_ratio", ratio.value, ratio.interval),
            ("noise_slope", one.slope, None),
            ("near_diagonal", near, None),
        ):
            named = {"measure": measure, **facets}
            results.append(Result(dataset, f"{measure}_{layer}", value, "ratio", count, protocol, interval, named))
    return results


def smoothness_study(
    classifier: Classifier,
    images: Images | None,
    layers: Sequence[str],
    sigma: float,
    seed: int,
    batch: int,
    other: Classifier | None = None,
) -> Outcome:
    """Return all of a network's smoothness.

    Args:
        classifier: in evaluation mode.
        images: for maps and gradients; None for weights alone.
        layers: whose maps are measured.
        sigma: of the noise, in [0, 1] pixel units.
        seed: of the noise.
        batch: images at once.
        other: network of the same architecture, whose first filters are matched; None for none.
    """
    results = weight_results(classifier)
    arrays: dict[str, Tensor] = {f"weights {one.layer}": one.of_channels for one in weight_variation(classifier)}
    tables: dict[str, list[dict[str, Any]]] = {}
    pictures: dict[str, Picture] = {}
    captions: dict[str, str] = {}
    if (picture := filters_picture(classifier)) is not None:
        pictures["filters"], captions["filters"] = picture, "filters of the first convolution"
    if images is not None:
        found = map_variation(classifier, images.batches(batch, "maps, clean and noisy"), layers, sigma, seed)
        protocol = {**images.protocol, "noise": "gaussian, clipped to [0, 1]", "sigma": sigma, "seed": seed}
        results += map_results(found, len(images), images.name, protocol)
        tables["channels"] = [
            {"layer": layer, "unit": unit, "clean": float(one.clean[unit]), "noisy": float(one.noisy[unit])}
            for layer, one in found.items()
            for unit in range(len(one.clean))
        ]
        names = ("clean images", "noisy images")
        panels = {layer: Points(one.clean, one.noisy, names) for layer, one in found.items()}
        pictures["noise"] = scatter(panels, diagonal=True)
        captions["noise"] = "total variation of each channel: noisy images over clean ones, a panel a layer"
        rough, shown = _gradients(classifier, images, batch)
        mean = mean_of(rough)
        about = {**images.protocol, "of": "the cross entropy's gradient, TV / L1"}
        facets = {"measure": "gradient_tv_of_l1"}
        one_result = Result(
            images.name, "gradient_tv_of_l1", mean.value, "ratio", mean.count, about, mean.interval, facets
        )
        results.append(one_result)
        arrays["gradients"] = rough
        pictures["gradients"] = labelled_grid(shown)
        captions["gradients"] = "the gradient of the loss with respect to the image; grey is 0, each on its own scale"
    if other is not None:
        results += _matches(classifier, other, arrays)
    return Outcome(results, arrays, tables, pictures, captions)


def _gradients(classifier: Classifier, images: Images, batch: int, most: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    """Return how rough the gradients of all images are, ``[N]``, and the first images with theirs, to be shown."""
    labels, device = torch.from_numpy(images.labels), classifier.mean.device
    rough, shown = [], {"image": torch.zeros(0), "gradient": torch.zeros(0)}
    for places, pixels in images.batches(batch, "gradients"):
        gradients = loss_gradients(classifier, pixels.to(device), labels[places].to(device)).cpu()
        rough.append(gradient_roughness(gradients))
        largest = gradients.abs().amax((1, 2, 3), keepdim=True)
        grey = 0.5 + gradients / (2 * torch.where(largest > 0, largest, 1.0))
        shown = {name: torch.cat([shown[name], one])[:most] for name, one in (("image", pixels), ("gradient", grey))}
    return torch.cat(rough), shown


def _matches(classifier: Classifier, other: Classifier, arrays: dict[str, Tensor]) -> list[Result]:
    """Return the mean correlation of the first convolutions' matched filters, both ways of matching."""
    firsts = [
        next(m for m in named_layers(each).values() if isinstance(m, nn.Conv2d)).weight.detach().cpu()
        for each in (classifier, other)
    ]
    results = []
    for variant, one_to_one in (("most alike", False), ("one to one", True)):
        found = matched_filters(firsts[0], firsts[1], one_to_one)
        arrays[f"matches {variant}"] = found.pairs
        mean = mean_of(found.correlation)
        facets = {"measure": "filter_correlation", "variant": variant}
        about = {"of": "first convolution", "correlation": "Spearman"}
        metric = f"filter_correlation_{variant.replace(' ', '_')}"
        results.append(Result("weights", metric, mean.value, "ratio", mean.count, about, mean.interval, facets))
    return results
