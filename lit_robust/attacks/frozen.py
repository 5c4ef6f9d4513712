"""The state a network is attacked in, and the way back to where it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def frozen(model: Callable[..., Any]) -> Iterator[None]:
    """Put a network into eval mode without parameter gradients; restore every flag on the way out, errors included.

    Running statistics and dropout stay out of the attack, and no backward pass computes weight gradients. Frozen
    weights also stay out of autocast's cache of half-precision copies, where a copy made under ``no_grad`` or
    ``inference_mode`` would later be taken for the trained weight.

    Args:
        model: an ``nn.Module``; for any other callable there is nothing to freeze.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    # Flags are set one by one: `train()` would give a network's parts one common mode, and may be overridden.
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
            kept = getattr(module, "attention_bias_cache", None)
            if isinstance(kept, dict):
                # timm's LeViT, EfficientFormer and TinyViT fill it in eval mode: it is of the weights they had then.
                kept.clear()
        for parameter, _ in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
