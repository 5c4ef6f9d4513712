"""How smooth a network is (Chen, Agarwal & Nguyen 2020, section 3.3): total variation of weights, maps, gradients."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_robust.analysis.images import Numbers
from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision
from lit_robust.core.seeds import stream_seed
from lit_robust.metrics.intervals import centred_ranks
from lit_robust.models import Classifier
from lit_robust.models.taps import as_maps, layout_of, named_layers, outputs


def total_variation(maps: Tensor) -> Tensor:
    """Return the anisotropic total variation of maps: the sum of the absolute differences of neighbours.

    Args:
        maps: ``[..., H, W]``.

    Returns:
        ``[...]``, in the maps' units.

    Example:
        >>> total_variation(torch.eye(2))
        tensor(4.)
    """
    rows, columns = maps.diff(dim=-2), maps.diff(dim=-1)
    return rows.abs().sum((-2, -1)) + columns.abs().sum((-2, -1))


@dataclass(frozen=True)
class WeightVariation:
    """Total variation of the kernels of one convolution.

    Attributes:
        layer: name.
        kernel: height and width of a kernel.
        of_channels: ``[O]`` total variation of each output channel's kernels, summed over its inputs.
        inputs: kernels of an output channel.
        normalised: mean over the kernels of the total variation over the sum of absolute weights, which the scale of
            the weights does not change; of kernels that are not zero.
    """

    layer: str
    kernel: tuple[int, int]
    of_channels: Tensor
    inputs: int
    normalised: float


def weight_variation(network: nn.Module) -> list[WeightVariation]:
    """Return the total variation of every convolution's kernels, in the order of the layers."""
    found = []
    for name, layer in named_layers(network).items():
        if not isinstance(layer, nn.Conv2d):
            continue
        kernels = layer.weight.detach().double().cpu()
        variation, size = total_variation(kernels), kernels.abs().sum((-2, -1))
        shares = (variation / size)[size > 0]
        height, width = kernels.shape[-2:]
        of_channels = variation.sum(1)
        found.append(WeightVariation(name, (height, width), of_channels, kernels.shape[1], float(shares.mean())))
    if not found:
        raise UserError("The network has no convolutions, whose kernels could be smooth: give one that has.")
    return found


def weighted_mean(layers: list[WeightVariation], mean_over_inputs: bool, with_points: bool) -> float:
    """Return the mean over layers of a channel's total variation, weighted by the layers' numbers of channels.

    Args:
        layers: of ``weight_variation``.
        mean_over_inputs: mean over a channel's inputs, not their sum. Which of the two the paper took, its released
            code does not say.
        with_points: with kernels of 1x1, whose total variation is 0, as the paper has them.
    """
    kept = [one for one in layers if with_points or one.kernel != (1, 1)]
    each = torch.cat([one.of_channels / (one.inputs if mean_over_inputs else 1) for one in kept])
    return float(each.mean())


def noisy(images: Tensor, numbers: Sequence[int] | Numbers, sigma: float, seed: int) -> Tensor:
    """Return images with Gaussian noise, clipped to [0, 1]; an image's noise follows from the seed and its number.

    Args:
        images: float ``[B, 3, H, W]`` in [0, 1].
        numbers: of the images.
        sigma: standard deviation, in [0, 1] pixel units; .08 is ImageNet-C's severity 1.
        seed: of the stream.
    """
    noise = []
    for number in numbers:
        source = torch.Generator().manual_seed(stream_seed(seed, "smoothness noise", int(number)))
        noise.append(torch.randn(images.shape[1:], generator=source))
    return (images + sigma * torch.stack(noise).to(images)).clamp(0, 1)


@dataclass(frozen=True)
class MapVariation:
    """Total variation of a layer's maps, each channel's mean over the images.

    Attributes:
        clean: float64 ``[C]``.
        noisy: float64 ``[C]``, of the same images with noise.
        differences: pairs of neighbours in a map, by which layers and image sizes compare.
    """

    clean: Tensor
    noisy: Tensor
    differences: int

    @property
    def slope(self) -> float:
        """Least-squares slope through the origin of noisy over clean; 1 where noise adds nothing."""
        return float((self.clean * self.noisy).sum() / self.clean.square().sum())

    @property
    def log_ratios(self) -> Tensor:
        """Natural logarithm of noisy / clean of each channel, NaN where one is 0."""
        ratios = (self.noisy / self.clean).log()
        return torch.where(ratios.isfinite(), ratios, torch.nan)


@torch.no_grad()
def map_variation(
    classifier: Classifier,
    batches: Iterable[tuple[Sequence[int] | Numbers, Tensor]],
    layers: Sequence[str],
    sigma: float = 0.08,
    seed: int = 0,
) -> dict[str, MapVariation]:
    """Return the total variation of layers' maps for clean images and for the same images with noise.

    Args:
        classifier: in evaluation mode; computes in fp32.
        batches: numbers and images, float ``[B, 3, H, W]`` in [0, 1].
        layers: names.
        sigma: of the noise, in [0, 1] pixel units.
        seed: of the noise.
    """
    sums: dict[str, list[Tensor]] = {}
    differences, count = {}, 0
    for numbers, images in batches:
        clean = images.to(classifier.mean.device)
        count += len(clean)
        for kind, shown in enumerate((clean, noisy(clean, numbers, sigma, seed))):
            with full_precision(clean.device.type):
                found = outputs(classifier, shown, layers)
            for name, output in found.items():
                maps = as_maps(output, layout_of(classifier, name, output, shown)).float()
                height, width = maps.shape[2:]
                differences[name] = (height - 1) * width + height * (width - 1)
                both = sums.setdefault(name, [torch.zeros(maps.shape[1], dtype=torch.float64) for _ in range(2)])
                both[kind] += total_variation(maps).double().sum(0).cpu()
    return {name: MapVariation(sums[name][0] / count, sums[name][1] / count, differences[name]) for name in layers}


def loss_gradients(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return each image's gradient of the cross entropy, float32 ``[B, 3, H, W]``.

    Args:
        classifier: in evaluation mode.
        images: float ``[B, 3, H, W]`` in [0, 1].
        labels: ``[B]``.
    """
    with torch.enable_grad(), full_precision(images.device.type):
        start = images.detach().requires_grad_()
        loss = functional.cross_entropy(classifier(start), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, start)
    return gradient


def gradient_roughness(gradients: Tensor) -> Tensor:
    """Return TV(g) / ||g||_1 of gradients ``[B, 3, H, W]``, float64 ``[B]``; NaN where one is zero."""
    gradient = gradients.double()
    return total_variation(gradient).sum(1) / gradient.abs().sum((1, 2, 3))


@dataclass(frozen=True)
class Matches:
    """Filters of one network and the filters of another that are most like them.

    Attributes:
        pairs: int64 ``[N, 2]``, filters of the one and of the other.
        correlation: float64 ``[N]``, Spearman's of each pair.
    """

    pairs: Tensor
    correlation: Tensor


def matched_filters(one: Tensor, other: Tensor, one_to_one: bool = False) -> Matches:
    """Match filters by Spearman's rank correlation of their weights; constant filters are left out.

    Args:
        one: ``[N, ...]``.
        other: ``[M, ...]``, of filters of the same shape.
        one_to_one: each filter of the other once, by the assignment of the highest sum; otherwise for each filter of
            the one the most like, as Chen, Agarwal & Nguyen (2020) did.

    Raises:
        UserError: the filters are of other shapes.
    """
    if one.shape[1:] != other.shape[1:]:
        raise UserError(
            f"The filters are of {list(one.shape[1:])} and {list(other.shape[1:])} weights: compare two networks of "
            "one architecture."
        )
    ranks = [centred_ranks(weights.flatten(1).double()) for weights in (one, other)]
    correlation = ranks[0] @ ranks[1].T
    usable = ~correlation.isnan()
    if one_to_one:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

        rows, columns = usable.any(1).nonzero()[:, 0], usable.any(0).nonzero()[:, 0]
        found = linear_sum_assignment(correlation[rows][:, columns].numpy(), maximize=True)
        pairs = torch.stack([rows[torch.from_numpy(found[0])], columns[torch.from_numpy(found[1])]], 1)
    else:
        rows = usable.any(1).nonzero()[:, 0]
        pairs = torch.stack([rows, correlation.nan_to_num(-2)[rows].argmax(1)], 1)
    return Matches(pairs, correlation[pairs[:, 0], pairs[:, 1]])
