"""How smooth a network is (Chen, Agarwal & Nguyen 2020, section 3.3): total variation of its filters."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_robust.analysis.outcome import Outcome
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.models import Classifier
from lit_robust.models.taps import named_layers


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


def weight_study(classifier: Classifier) -> Outcome:
    """Return the total variation of a network's weights."""
    layers = weight_variation(classifier)
    results = [
        Result(
            dataset="weights",
            metric=f"weight_tv_{one.layer}",
            value=float(one.of_channels.mean()),
            unit="variation",
            count=len(one.of_channels),
            protocol={"over_inputs": "sum", "kernel": list(one.kernel)},
            facets={"measure": "weight_tv", "layer": one.layer},
        )
        for one in layers
    ]
    return Outcome(results, {one.layer: one.of_channels for one in layers})
