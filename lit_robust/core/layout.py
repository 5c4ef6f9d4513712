"""The memory layout in which a network's convolutions are fastest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def in_fast_layout(model: Callable[[Tensor], Any], device_type: str) -> Callable[[Tensor], Any]:
    """Return the network, or one that gives it images with channels last where its convolutions are faster so.

    They are on CPUs in fp32, and on GPUs under autocast
    (docs.pytorch.org, "Channels Last Memory Format in PyTorch"). Weights stay as they lie: a convolution follows its
    images. A network whose weights lie so already is left alone, as its convolutions follow those, and so is one
    without convolutions.

    Args:
        model: images ``[B, C, H, W]`` to anything; a callable that is not a module is left alone.
        device_type: ``cpu`` or ``cuda``.
    """
    if not isinstance(model, nn.Module) or not (device_type == "cpu" or torch.is_autocast_enabled(device_type)):
        return model
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not any(weight.is_contiguous() and weight[0, 0].numel() > 1 for weight in weights):
        return model
    return ChannelsLast(model)


class ChannelsLast:
    """A network that is given images with channels last in a search, unless it cannot take them so.

    A pass without gradients gets the images as they are: a verdict is, bit for bit, what the network itself answers.
    One that calls ``view`` on what a convolution gives it, in place of ``flatten`` or ``reshape``, cannot: torch raises
    an error in its first pass, which is then taken again, and so are all others, with the images as they are. An error
    of the network's own comes of the second try.

    Args:
        model: images ``[B, C, H, W]`` to anything.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.takes_them = True

    def __call__(self, images: Tensor) -> Any:
        """Return what the network returns; of an accelerator nothing is read."""
        if self.takes_them and torch.is_grad_enabled():
            try:
                return self.model(images.contiguous(memory_format=torch.channels_last))
            except RuntimeError:
                self.takes_them = False
        return self.model(images)
