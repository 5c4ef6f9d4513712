"""The logits in what a network returns, which is not always one tensor."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
            f"The network returns {_described(output)}, in which its logits are not to be told: wrap it in a module "
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
