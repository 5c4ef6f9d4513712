"""Which layers a study looks at where nobody says: the outputs of a network's stages, as the papers chose them."""

import torch
from torch import Tensor, nn

from lit_robust.analysis.replay import record
from lit_robust.core.errors import UserError
from lit_robust.models import Classifier

PLAIN = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.Identity)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.modules.dropout._DropoutNd)


def stages(classifier: Classifier, image: Tensor) -> list[str]:
    """Return the layers that give maps: activations and blocks at the first level, and inside what changes its size.

    For torchvision's AlexNet these are ``features.1, 4, 7, 9, 11``, for its ResNets ``relu`` and ``layer1`` to
    ``layer4``, for its GoogLeNet the three convolutions and nine Inceptions: the layers of Chen, Agarwal & Nguyen
    (2020). A sequence whose parts give maps of different shapes is taken apart.

    Args:
        classifier: in evaluation mode.
        image: float ``[1, 3, H, W]`` in [0, 1], such as the study's first.

    Raises:
        UserError: the network has none.
    """
    shapes: dict[str, torch.Size] = {}
    modules: dict[str, nn.Module] = {}
    repeated = set()
    for call in sorted(record(classifier, image).calls, key=lambda call: call.begin):
        if isinstance(call.output, Tensor):
            repeated |= {call.name} & shapes.keys()
            shapes[call.name], modules[call.name] = call.output.shape, call.module
    found: list[str] = []

    def visit(prefix: str) -> None:
        depth = prefix.count(".")
        for name in [one for one in shapes if one.startswith(prefix) and one.count(".") == depth]:
            inside = [one for one in shapes if one.rpartition(".")[0] == name]
            module = modules[name]
            if isinstance(module, nn.Sequential) and len({shapes[one] for one in inside}) > 1 and _varies(inside):
                visit(f"{name}.")
            elif (
                _is_stage(module) and name not in repeated and len(shapes[name]) in (3, 4) and max(shapes[name][2:]) > 1
            ):
                found.append(name)

    def _varies(inside: list[str]) -> bool:
        # A sequence of a convolution and its activation is one layer, whatever sizes they have.
        return sum(_is_stage(modules[one]) for one in inside) > 1

    visit("")
    if not found:
        raise UserError("No layer of this network gives maps by itself: name some with --layers.")
    return found


def _has_places(shape: torch.Size) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and max(shape[2:]) > 1)


def _is_stage(module: nn.Module) -> bool:
    return not isinstance(module, (*PLAIN, *POOLS))
