"""A network whose decision is taken among some of its classes, for attack and verdict alike."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class SomeClasses(nn.Module):
    """The logits of some of a network's classes and no others, so that every loss and every answer is among these.

    The others are left out, not set to minus infinity, of which margins and ratios of logits are no numbers. Classes
    get new numbers, their places among the chosen ones.

    Args:
        model: float images in [0, 1] to logits ``[B, num_classes]``; its mode and its parameters are its own.
        classes: the classes to decide among, ascending; empty for all.
        device: the logits' and labels'.

    Example:
        >>> chosen = SomeClasses(nn.Flatten(), [0, 2, 3], torch.device("cpu"))
        >>> chosen(torch.tensor([[[[5.0, 6.0, 7.0, 8.0]]]]))
        tensor([[5., 7., 8.]])
        >>> chosen.places(torch.tensor([3, 0])), chosen.numbers(torch.tensor([2, 0]))
        (tensor([2, 0]), tensor([3, 0]))
    """

    def __init__(self, model: Callable[[Tensor], Tensor], classes: Sequence[int], device: torch.device) -> None:
        super().__init__()
        self.model = model
        # An attack saves them for its backward pass, which autograd refuses to do with inference tensors.
        with torch.inference_mode(False):
            self.classes = torch.tensor(classes, dtype=torch.int64, device=device)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, len(classes)]``."""
        logits: Tensor = self.model(images)
        return logits.index_select(1, self.classes) if len(self.classes) else logits

    def places(self, labels: Tensor) -> Tensor:
        """Return the new numbers of classes, int64 ``[B]``, all of which are among the chosen ones."""
        return torch.searchsorted(self.classes, labels) if len(self.classes) else labels

    def numbers(self, places: Tensor) -> Tensor:
        """Return the network's numbers of classes, given their new ones, int64 ``[B]``."""
        return self.classes[places] if len(self.classes) else places
