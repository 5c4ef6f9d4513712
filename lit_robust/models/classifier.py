"""A network with its normalisation inside."""

import torch
from torch import Tensor, nn

from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of
from lit_robust.models.foreign.channels import Channels


class Classifier(nn.Module):
    """Images in [0, 1] to logits, with the channel normalisation as the first layer.

    Attacks and corruptions work on what goes in here, so eps is always in pixel units of [0, 1].

    Args:
        network: takes normalised images ``[B, 3, H, W]`` and returns logits ``[B, num_classes]``, alone or as
            ``logits_of`` finds them.
        mean: per-channel mean, in [0, 1] pixel units.
        std: per-channel standard deviation, in [0, 1] pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Channels, std: Channels) -> None:
        super().__init__()
        self.network = network
        self.normalisation = mean, std
        # Not in the state dict: they belong to the network's description, which a checkpoint keeps by itself.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1]."""
        normalised = (images - self.mean) / self.std
        # Convolutions are fastest with channels last, on CPUs and GPUs; where images are so already this is free.
        return logits_of(self.network(normalised.contiguous(memory_format=torch.channels_last)))

    def layer(self, name: str) -> nn.Module:
        """Return the sub-module of the network with a dotted name; raise a UserError where there is none."""
        layers: dict[str, nn.Module] = dict(self.network.named_modules())
        if name not in layers or not name:
            names = ", ".join(child for child, _ in self.network.named_children())
            raise UserError(f"The network has no layer {name!r}: its first-level layers are {names}.")
        return layers[name]

    def features(self, images: Tensor, layer: str) -> Tensor:
        """Return what the sub-module named ``layer`` gives out for ``images``, before later modules change it in place.

        A module that the network calls several times, such as a residual block's one ReLU, gives its last output.

        Args:
            images: float ``[B, 3, H, W]`` in [0, 1].
            layer: dotted name inside the network, such as ``avgpool`` or ``layer4.1``.

        Raises:
            UserError: the network has no such layer, never calls it, or it gives no single tensor.
        """
        last: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UserError(
                    f"The layer {layer!r} gives a {type(output).__name__}, not one tensor: choose another, such as the "
                    "one around it."
                )
            # In-place ReLUs and sums write into what they are given.
            last[:] = [output.clone()]

        handle = self.layer(layer).register_forward_hook(keep)
        try:
            self(images)
        finally:
            handle.remove()
        if not last:
            raise UserError(
                f"The network never calls its layer {layer!r} by itself: choose another, such as the one around it."
            )
        return last[0]
