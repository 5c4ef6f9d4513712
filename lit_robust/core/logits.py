"""The logits in what a network returns, which is not always one tensor; and those of some of its classes alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.core.errors import UserError


def logits_of(output: Any) -> Tensor:
    """Return the logits ``[B, num_classes]`` of a network's output.

    They are the tensor itself; the attribute ``logits``, as of torchvision's GoogLeNet and Inception in train mode and
    of Hugging Face's networks; the entry ``logits`` or ``out`` of a dict, as of torchvision's segmentation networks; or
    the first of several logits of one shape, as of timm's networks with auxiliary or distilled heads.

    Raises:
        UserError: the output is none of these, or the logits are not ``[B, num_classes]``.

    Example:
        >>> import torch
        >>> logits_of({"features": torch.ones(1, 9), "logits": torch.zeros(1, 2)})
        tensor([[0., 0.]])
    """
    logits = _first(output)
    if logits is None:
        raise UserError(
            f"The network returns {_described(output)}, in which its logits cannot be recognised: wrap it in a module "
            "whose forward returns the logits alone."
        )
    if logits.ndim != 2:
        raise UserError(f"The network returns a tensor of shape {list(logits.shape)}: logits are [batch, classes].")
    return logits


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    named = [getattr(output, "logits", None)]
    if isinstance(output, Mapping):
        named += [output.get("logits"), output.get("out")]
    for one in named:
        if isinstance(one, Tensor):
            return one
    if isinstance(output, tuple | list) and output and all(isinstance(one, Tensor) for one in output):
        first: Tensor = output[0]
        return first if all(one.shape == first.shape for one in output) else None
    return None


def _described(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} with {', '.join(map(str, output))}"
    if isinstance(output, tuple | list):
        shapes = [list(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in output]
        return f"a {kind} of {', '.join(map(str, shapes))}"
    return f"a {kind}"


@contextmanager
def fitting(images: Tensor) -> Iterator[None]:
    """Say of a network that fails on images, ``[B, C, H, W]``, what the reason mostly is.

    Raises:
        UserError: torch, or the network's own checks, as those of timm's transformers, refuse what they are given.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"The network fails on float32 images of shape {list(images.shape)} ({reason}): give images of the "
            "channels and the size that it takes, and a network that computes in float32."
        ) from error


class SomeClasses(nn.Module):
    """The logits of some of a network's classes and no others, so that every loss and every answer is among these.

    The others are left out, not set to minus infinity, as margins and ratios of logits are then not numbers. Classes
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
