"""Batch norm in two branches, one for clean and one for attacked images (Xie et al. 2020, AdvProp)."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

AUXILIARY = "auxiliary."


class AuxiliaryNorm(nn.Module):
    """A batch norm and its twin, which has statistics and affine parameters of its own.

    Which of them is used is said explicitly, and does not depend on train or eval mode: an attack runs in eval mode
    through the auxiliary branch. In a state dict the main branch has the names of the plain network, and the auxiliary
    one stands below ``auxiliary.``; so the plain network is what remains without those.

    Args:
        norm: the batch norm of the plain network; the twin starts as its copy.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.main = norm
        self.auxiliary = copy.deepcopy(norm)
        self.uses_auxiliary = False
        self.register_state_dict_post_hook(_plain_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_branch_names)  # type: ignore[no-untyped-call]

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise ``[B, C, ...]`` by the branch in use."""
        chosen: Tensor = self.auxiliary(inputs) if self.uses_auxiliary else self.main(inputs)
        return chosen


def add_auxiliary_norms(network: nn.Module) -> int:
    """Give every batch norm of a network an auxiliary branch, in place.

    Works for any network whose batch norms are torch's or inherit from them, as torchvision's and timm's do.

    Returns:
        How many there are; 0 for a network without batch norm, such as AlexNet.
    """
    count = 0
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(module, AuxiliaryNorm):
                setattr(module, name, AuxiliaryNorm(child))
                count += 1
    return count


@contextmanager
def auxiliary_branch(network: nn.Module) -> Iterator[None]:
    """Send what goes through the network through its auxiliary norms, and put every choice back on the way out."""
    norms = [module for module in network.modules() if isinstance(module, AuxiliaryNorm)]
    before = [norm.uses_auxiliary for norm in norms]
    try:
        for norm in norms:
            norm.uses_auxiliary = True
        yield
    finally:
        for norm, used in zip(norms, before, strict=True):
            norm.uses_auxiliary = used


def without_auxiliary(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the plain network, the main branch's, from a state dict."""
    return {name: tensor for name, tensor in state.items() if f".{AUXILIARY}" not in f".{name}"}


def _plain_names(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}main.")]:
        state[prefix + name.removeprefix(f"{prefix}main.")] = state.pop(name)


def _branch_names(module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        below = name.removeprefix(prefix)
        if not below.startswith((AUXILIARY, "main.")):
            state[f"{prefix}main.{below}"] = state.pop(name)
