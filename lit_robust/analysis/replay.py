"""One pass of a network recorded, and what follows a layer computed again from other outputs of it, alone.

Where a network has run once for an image, what comes before a layer need not run again for each change of that layer's
output. Every module call that had ended when the layer gave its output returns what it returned then; the rest runs as
it is, whatever Python stands between the modules.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lit_robust.core.logits import logits_of
from lit_robust.models import Classifier
from lit_robust.models.taps import layer_of, named_layers, unwrapped


@dataclass(frozen=True)
class Call:
    """One call of a module in a pass.

    Attributes:
        name: of the layer.
        module: that was called.
        begin: its place among all begins and ends of calls.
        end: likewise.
        given: first positional input; None where it is not a tensor.
        output: a copy, which nothing later changes.
    """

    name: str
    module: nn.Module
    begin: int
    end: int
    given: Tensor | None
    output: Any


@dataclass(frozen=True)
class Recording:
    """One pass for one image.

    Attributes:
        inner: the network that gets normalised images.
        normalised: ``[1, 3, H, W]``.
        calls: in the order of their ends.
        logits: ``[1, num_classes]``.
    """

    inner: nn.Module
    normalised: Tensor
    calls: Sequence[Call]
    logits: Tensor

    def call_of(self, layer: str) -> Call:
        """Return the call that a layer's name means: the last, or the one whose number it says."""
        module, number = layer_of(self.inner, layer)
        calls = [call for call in self.calls if call.module is module]
        return calls[-1 if number is None else number - 1]

    def rest(self, layer: str, outputs: Tensor) -> Tensor:
        """Return logits ``[K, num_classes]`` of what follows a layer, for K outputs in the place of its own.

        Args:
            layer: name.
            outputs: ``[K, ...]``, in the layout of the layer's own output.
        """
        tap, count = self.call_of(layer), len(outputs)
        before = [call for call in self.calls if call.end < tap.end and call.begin < tap.begin]
        ended = [call for call in before if not any(_within(call, other) for other in before)]
        queues: dict[nn.Module, deque[Any]] = {}
        for call in ended:
            spread = tree_map(lambda part: _spread(part, count), call.output)
            queues.setdefault(call.module, deque()).append(spread)
        # The tap ends after the calls before it. A copy, as the next module may work in place.
        queues.setdefault(tap.module, deque()).append(outputs.clone())
        with _answering(queues):
            return logits_of(self.inner(self.normalised.expand(count, -1, -1, -1)))


def _within(call: Call, other: Call) -> bool:
    return other.begin < call.begin and call.end < other.end


def _spread(part: Any, count: int) -> Any:
    # Without a copy: what a network reads of one image, every row of the batch reads.
    return part.expand(count, *part.shape[1:]) if isinstance(part, Tensor) and len(part) == 1 else part


@contextmanager
def _answering(queues: dict[nn.Module, deque[Any]]) -> Iterator[None]:
    """Let modules return what is queued for them, and run as they are once that is used up."""
    plain = {module: module.forward for module in queues}
    own = {module: "forward" in vars(module) for module in queues}

    def answer(module: nn.Module) -> Any:
        def forward(*given: Any, **named: Any) -> Any:
            return queues[module].popleft() if queues[module] else plain[module](*given, **named)

        return forward

    try:
        for module in queues:
            vars(module)["forward"] = answer(module)
        yield
    finally:
        for module in queues:
            if own[module]:
                vars(module)["forward"] = plain[module]
            else:
                del vars(module)["forward"]


@torch.no_grad()
def record(classifier: Classifier, image: Tensor) -> Recording:
    """Run a network once, and keep what every module call gave.

    Args:
        classifier: in evaluation mode, in which an image's answer depends on it alone.
        image: float ``[1, 3, H, W]`` in [0, 1].
    """
    inner = unwrapped(classifier)
    calls: list[Call] = []
    open_calls: list[tuple[nn.Module, int]] = []
    moments = iter(range(10**9))
    handles = []

    def begin(module: nn.Module, _inputs: object) -> None:
        open_calls.append((module, next(moments)))

    def end(name: str) -> Any:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            began = open_calls.pop()[1]
            copy = tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, output)
            given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            calls.append(Call(name, module, began, next(moments), given, copy))

        return keep

    for name, module in named_layers(classifier).items():
        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end(name))]
    normalised = (image - classifier.mean) / classifier.std
    normalised = normalised.contiguous(memory_format=torch.channels_last)
    try:
        logits = logits_of(inner(normalised))
    finally:
        for handle in handles:
            handle.remove()
    return Recording(inner, normalised, calls, logits)


def pooled_head(recording: Recording, layer: str) -> tuple[Tensor, Tensor] | None:
    """Return the means ``[C]`` of a layer's maps and the weights ``[num_classes, C]``, where only these follow it.

    That is: the network's logits are a linear layer's output, whose input are the means of the maps. It is read from
    the numbers of this pass, whatever the modules are called.

    Returns:
        None where anything else follows.
    """
    maps, last = recording.call_of(layer).output, recording.calls[-1]
    linear = next((call for call in reversed(recording.calls) if isinstance(call.module, nn.Linear)), last)
    module, given = linear.module, linear.given
    if not isinstance(module, nn.Linear) or given is None or not isinstance(maps, Tensor) or maps.ndim != 4:
        return None
    means = maps.mean((2, 3))
    if given.shape != means.shape or not torch.equal(linear.output, recording.logits):
        return None
    same = torch.allclose(given, means, rtol=1e-5, atol=1e-6 * float(means.abs().max()))
    return (given[0], module.weight.detach()) if same else None
