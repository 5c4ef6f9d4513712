"""Taps: what a layer gives out, by the layer's name, and networks that go on with a changed output.

A layer is any sub-module. Its name is dotted, as in ``named_modules``: ``layer4.1``, ``blocks.3.mlp``. What wraps the
network (``DistributedDataParallel``, ``torch.compile``, activation checkpoints, ``Classifier``) has no part in it. A
module that a network calls several times, such as a residual block's one ReLU, gives its last output;
``layer4.1.relu@1`` is its first. Outputs are what the layer gave, in its type, before later modules change it in place.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal

import torch
from torch import Tensor, nn

from lit_robust.core.errors import UserError, nearest

Change = Callable[[Tensor], Tensor]
Layout = Literal["vectors", "tokens", "channels first", "channels last"]
"""Axes of an output: ``[B, C]``, ``[B, N, C]``, ``[B, C, H, W]`` or, as in Swin, ``[B, H, W, C]``."""
PLACES: dict[Layout, tuple[int, ...]] = {
    "vectors": (),
    "tokens": (1,),
    "channels first": (2, 3),
    "channels last": (1, 2),
}
"""The axes of an output that are places, not channels, by its layout."""
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # Parts of names that wrappers put there.


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside ``DistributedDataParallel``, ``DataParallel``, ``torch.compile`` and ``Classifier``."""
    while True:
        if isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
            network = network.module
        elif isinstance(around := getattr(network, "_orig_mod", getattr(network, "normalised", None)), nn.Module):
            network = around
        else:
            return network


def named_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return every layer by its name; those of a ``Classifier`` by their names in its network."""
    layers = unwrapped(network).named_modules()
    plain = {".".join(part for part in name.split(".") if part not in INSIDE): module for name, module in layers}
    return {name: module for name, module in plain.items() if name}


def layer_of(network: nn.Module, layer: str) -> tuple[nn.Module, int | None]:
    """Return the sub-module that a layer's name means, and which of its calls; None where the name says none.

    Raises:
        UserError: the network has no such layer, or the call is not a number from 1.
    """
    name, at, call = layer.partition("@")
    layers = named_layers(network)
    if name not in layers:
        names = ", ".join(each for each in layers if "." not in each)
        raise UserError(
            f"The network has no layer {name!r}{nearest(name, layers)}: its first-level layers are {names}."
        )
    if at and not (call.isdecimal() and int(call) > 0):
        raise UserError(f"The layer {layer!r} has no call {call!r}: write a number from 1 behind the @.")
    return layers[name], int(call) if at else None


def outputs(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return what layers give out for images, in one pass; it ends early where each layer's name says which call.

    Args:
        network: any; autocast and gradients are the caller's.
        images: ``[B, 3, H, W]``, as the network takes them.
        layers: names.

    Returns:
        Layer's name to its output: a copy, which nothing later in the network changes.

    Raises:
        UserError: the network has no such layer, never calls it or not that often, or it gives no single tensor.
    """
    kept: dict[str, Tensor] = {}
    wanted = len(layers) if all("@" in layer for layer in layers) else math.inf

    def keeper(layer: str) -> Callable[[Tensor], None]:
        def keep(output: Tensor) -> None:
            # In-place ReLUs and sums write into what they are given.
            kept[layer] = output.clone()
            if len(kept) == wanted:
                raise _CompleteError

        return keep

    with ExitStack() as stack, suppress(_CompleteError):
        for layer in layers:
            stack.enter_context(_watched(network, layer, keeper(layer)))
        network(images)
    for layer in layers:
        _check_called(layer, layer in kept)
    return kept


class _CompleteError(Exception):
    """Ends a pass whose outputs have all been taken."""


def with_calls(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, str]:
    """Return each layer's name to the one with its last call, such as ``layer4@1``, by which a pass can end early.

    Args:
        network: any.
        images: ``[B, 3, H, W]``, for one pass.
        layers: names, with a call or without.

    Raises:
        UserError: as of ``outputs``.
    """
    calls = dict.fromkeys(layers, 0)

    def counter(layer: str) -> Callable[[Tensor], None]:
        def count(_output: Tensor) -> None:
            calls[layer] += 1

        return count

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_watched(network, layer, counter(layer)))
        network(images)
    for layer, count in calls.items():
        _check_called(layer, bool(count))
    return {layer: layer if "@" in layer else f"{layer}@{count}" for layer, count in calls.items()}


@contextmanager
def changed(network: nn.Module, layer: str, change: Change) -> Iterator[None]:
    """Let the network go on with a changed output of a layer, for as long as the block takes.

    Args:
        network: any.
        layer: name; of a module that is called several times in a pass with the number of the call.
        change: gets a copy of the output, which it may write into, and returns what takes its place.

    Raises:
        UserError: the network has no such layer, did not call it (not that often) in the block, called it more than
            once a pass and the name does not say which call is meant, or it gives no single tensor.
    """
    seen: list[bool] = []

    def put(output: Tensor) -> Tensor:
        seen.append(True)
        return change(output.clone())

    with _watched(network, layer, put, once=True):
        yield
    _check_called(layer, bool(seen))


@contextmanager
def _watched(
    network: nn.Module, layer: str, act: Callable[[Tensor], Tensor | None], once: bool = False
) -> Iterator[None]:
    """Call ``act`` with each output of a layer that its name means; what it returns takes the output's place.

    Where ``once`` is true, a second call in a pass is refused unless the name says which is meant.
    """
    module, wanted = layer_of(network, layer)
    calls = 0

    def begin(_module: nn.Module, _inputs: object) -> None:
        nonlocal calls
        calls = 0

    def watch(_module: nn.Module, _inputs: object, output: object) -> Tensor | None:
        nonlocal calls
        calls += 1
        if once and wanted is None and calls == 2:
            raise UserError(
                f"The network calls its layer {layer!r} several times: write which call, such as {layer}@1."
            )
        if wanted is not None and calls != wanted:
            return None
        if not isinstance(output, Tensor):
            raise UserError(
                f"The layer {layer!r} gives a {type(output).__name__}, not one tensor: choose another, such as the "
                "one around it."
            )
        return act(output)

    # A pass begins where the whole network is called.
    handles = [network.register_forward_pre_hook(begin), module.register_forward_hook(watch)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_called(layer: str, was: bool) -> None:
    name, _, call = layer.partition("@")
    if not was and call:
        raise UserError(f"The network does not call its layer {name!r} {call} times: give a smaller number.")
    if not was:
        raise UserError(
            f"The network never calls its layer {layer!r} by itself: choose another, such as the one around it."
        )


def layout_of(network: nn.Module, layer: str, output: Tensor, images: Tensor) -> Layout:
    """Tell the layout of a layer's output: by its shape, or where that does not tell by that for a larger image.

    Args:
        network: that gave it.
        layer: name.
        output: for these images.
        images: ``[B, 3, H, W]``.

    Raises:
        UserError: it has no features of each sample, or is a map whose channels cannot be distinguished from its
            places.
    """
    shape = output.shape
    if len(output) != len(images) or output.ndim not in (2, 3, 4):
        raise UserError(f"The layer {layer!r} gives {list(shape)}: choose one of features a sample.")
    if output.ndim < 4:
        return "vectors" if output.ndim == 2 else "tokens"
    return layout_of_square(shape, images.shape) or _layout_by_size(network, layer, shape, images)


@torch.no_grad()
def _layout_by_size(network: nn.Module, layer: str, shape: torch.Size, images: Tensor) -> Layout:
    """Tell a map's layout by how its shape changes with the image's size."""
    larger = images.new_zeros(1, images.shape[1], 2 * images.shape[2], 2 * images.shape[3])
    unclear = (
        f"The layer {layer!r} gives {list(shape)}, whose channels cannot be distinguished from its places: "
        "choose another, such as the one after the pooling."
    )
    try:
        grown = outputs(network, larger, [layer])[layer].shape
    except (RuntimeError, ValueError, AssertionError) as error:
        # Some networks take images of one size alone.
        raise UserError(unclear) from error
    layout = layout_of_grown(shape, grown)
    if layout is None:
        raise UserError(unclear)
    return layout


def layout_of_square(shape: Sequence[int], image_shape: Sequence[int]) -> Layout | None:
    """Tell a map's layout where its image is square, and so has as many rows as columns.

    Args:
        shape: of the map, 4 axes.
        image_shape: ``[B, 3, H, W]``.

    Returns:
        None where the shape alone does not tell.

    Example:
        >>> layout_of_square((9, 7, 7, 768), (9, 3, 224, 224))
        'channels last'
    """
    _, first, second, third = shape
    if image_shape[2] != image_shape[3] or (first == second) == (second == third):
        return None
    return "channels first" if second == third else "channels last"


def layout_of_grown(shape: Sequence[int], grown: Sequence[int]) -> Layout | None:
    """Tell a map's layout by its shape for a larger image: channels are those that stay as many.

    Args:
        shape: of the map, 4 axes.
        grown: its shape for an image of more rows and columns.

    Returns:
        ``channels first`` where nothing grows, as torch's poolings to one size give it; None where one axis grows or
        all three do.
    """
    grew = tuple(axis for axis in (1, 2, 3) if shape[axis] != grown[axis])
    layouts: dict[tuple[int, ...], Layout] = {(): "channels first", (2, 3): "channels first", (1, 2): "channels last"}
    return layouts.get(grew)


def as_maps(output: Tensor, layout: Layout) -> Tensor:
    """Return an output as maps ``[B, C, H, W]``: a vector as one place, tokens as the square behind class tokens.

    Tokens that come before the largest square number of them, as class and register tokens do, are left out.

    Raises:
        UserError: tokens have no square behind at most 8 others.
    """
    if layout == "channels first":
        return output
    if layout == "channels last":
        return output.permute(0, 3, 1, 2)
    if layout == "vectors":
        return output[:, :, None, None]
    side = int(output.shape[1] ** 0.5)
    if output.shape[1] - side * side > 8:
        raise UserError(f"{output.shape[1]} tokens are not those of a square image: give square images.")
    return output[:, -side * side :].transpose(1, 2).reshape(len(output), -1, side, side)


def channel_axis(layout: Layout) -> int:
    """Return the axis of an output's channels."""
    return 1 if layout in ("vectors", "channels first") else -1
