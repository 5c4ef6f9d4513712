"""Batch norms folded into the convolutions before them, for as long as an attack searches a frozen network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lit_robust.core.stem import quick_stems

TRUSTED = ("torch.nn.", "torchvision.", "timm.", "lit_robust.models.network")
"""Packages whose networks do the same with every batch, so that what was seen of one pass holds for all.

A forward of the user's own may count, draw or choose. It is run as it is, and only such parts of it are folded.
"""

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# Private names of torch, which has no public way to ask. A test fails where a hook is passed by.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FoldedPair(NamedTuple):
    """A convolution and the norm that alone takes what it gives; ``name`` is the convolution's in the network."""

    name: str
    convolution: nn.Conv2d
    norm: nn.BatchNorm2d | nn.SyncBatchNorm


class Trace(NamedTuple):
    """What a pass of a network does.

    Attributes:
        graph: a pass through the network's own layers without the norms of ``pairs``; null where none can be traced.
        pairs: what to fold.
        parts: modules and tensors of the network when it was traced; the trace is void for others.
    """

    graph: fx.GraphModule | None
    pairs: list[FoldedPair]
    parts: list[object]


_traces: WeakKeyDictionary[nn.Module, Trace] = WeakKeyDictionary()


@contextmanager
def folded(model: Callable[..., Any]) -> Iterator[None]:
    """Run a network's searches without its batch norms, whose scale and shift are put into the convolutions' weights.

    In eval mode a batch norm is a product and a sum a channel, so this changes rounding alone, and spares both passes
    of a gradient some of their time. Convolutions on images have a gradient of their own, see `quick_stems`. A pass
    without gradients, as a verdict is, is the network's own, bit for bit. Parts that others wrote, with hooks, or that
    cannot be traced keep their norms, and a compiled network is left alone.

    Args:
        model: frozen by the caller, in eval mode; a callable that is not a module is left alone.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    if not isinstance(model, nn.Module) or any(_is_compiled(module) for module in modules):
        yield
        return
    taken: list[tuple[nn.Module, fx.GraphModule, list[FoldedPair]]] = []
    try:
        for place, graph, pairs in _places(model):
            taken.append((place, graph, pairs))
            with torch.no_grad():
                convolutions = [fuse_conv_bn_eval(pair.convolution, pair.norm) for pair in pairs]
            for pair, convolution in zip(pairs, convolutions, strict=True):
                graph.set_submodule(pair.name, convolution)
            modules += convolutions
            # On the instance, so that the network stays whole: whoever asks for its layers gets its own.
            called = {graph.get_submodule(str(node.target)) for node in graph.graph.nodes if node.op == "call_module"}
            inside = [part for part in list(place.modules())[1:] if part not in called]
            place.__dict__["forward"] = partial(_forward, inside, place.forward, graph)
        with quick_stems(modules):
            yield
    finally:
        for place, graph, pairs in taken:
            place.__dict__.pop("forward", None)
            for pair in pairs:
                graph.set_submodule(pair.name, pair.convolution)


def _forward(
    inside: list[nn.Module], whole: Callable[..., Any], search: fx.GraphModule, *given: Any, **named: Any
) -> Any:
    # Who asks for a layer's output, as a memory does, hangs a hook on it for a pass. A traced pass calls the innermost
    # layers alone, and none that is folded.
    wanted = torch.is_grad_enabled() and not any(_has_hooks(part) for part in inside)
    return (search if wanted else whole)(*given, **named)


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, fx.GraphModule, list[FoldedPair]]]:
    """Yield the largest parts that can be traced and have something to fold, with their traces."""
    inside = list(module.modules())
    if not any(type(part) in NORMS for part in inside):
        return
    # A part's own hooks are around its forward. Traced, those inside would be called without images.
    if _is_trusted(module) and all(_is_trusted(part) and not _has_hooks(part) for part in inside[1:]):
        graph, pairs, _ = _trace(module)
        if graph is not None:
            if pairs:
                yield module, graph, pairs
            return
    for child in module.children():
        yield from _places(child)


def _is_trusted(module: nn.Module) -> bool:
    return f"{type(module).__module__}.".startswith(TRUSTED) and "forward" not in vars(module)


def _is_compiled(module: nn.Module) -> bool:
    inside = getattr(module, "_compiled_call_impl", None) is not None
    return inside or type(module).__module__.startswith("torch._dynamo")


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in HOOKS)


def _trace(network: nn.Module) -> Trace:
    """Return what a pass does, from the last time if no part was exchanged since."""
    # The network itself is left out: it would never be freed.
    parts: list[object] = [*list(network.modules())[1:], *network.parameters(), *network.buffers()]
    kept = _traces.get(network)
    if kept is None or len(kept.parts) != len(parts) or any(a is not b for a, b in zip(kept.parts, parts, strict=True)):
        kept = _traces[network] = _look(network, parts)
    return kept


def _look(network: nn.Module, parts: list[object]) -> Trace:
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # Whatever a forward raises that gets no real images; it is run as it is then.
        return Trace(None, [], parts)
    modules = dict(network.named_modules())
    called = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in called]
    pairs = []
    for node in called:
        before = node.args[0] if len(node.args) == 1 else None
        if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
            continue
        norm, convolution = modules[str(node.target)], modules[str(before.target)]
        once = targets.count(node.target) == targets.count(before.target) == 1
        statistics = getattr(norm, "running_mean", None) is not None
        own = isinstance(norm, NORMS) and type(norm) in NORMS  # A subclass may compute otherwise.
        if once and statistics and own and type(convolution) is nn.Conv2d:
            pairs.append(FoldedPair(str(before.target), convolution, norm))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    return Trace(fx.GraphModule(network, graph), pairs, parts)
