"""One pass of a network recorded, and what follows a layer computed again from other outputs of it, alone.

Where a network has run once for an image, what comes before a layer need not run again for each change of that layer's
output. Every module call that had ended when the layer gave its output returns what it returned then; the rest runs as
it is, whatever Python stands between the modules. Only a convolution of images that differ from the recorded one in a
single channel adds what that channel changes to what it gave then, as it is linear.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
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
        given: a copy of the input of a convolution or linear layer, which nothing later changes; None of other modules.
        output: likewise.
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
        later: dict[nn.Module, deque[Call]] = {}
        for call in sorted(self.calls, key=lambda call: call.begin):
            if call.begin > tap.end and isinstance(call.module, nn.Conv2d) and _may_update(call.module):
                later.setdefault(call.module, deque()).append(call)
        with _answering(queues, later):
            return logits_of(self.inner(self.normalised.expand(count, -1, -1, -1)))


def _within(call: Call, other: Call) -> bool:
    return other.begin < call.begin and call.end < other.end


def _spread(part: Any, count: int) -> Any:
    # Without a copy: what a network reads of one image, every row of the batch reads.
    return part.expand(count, *part.shape[1:]) if isinstance(part, Tensor) and len(part) == 1 else part


def _may_update(convolution: nn.Conv2d) -> bool:
    plain = convolution.groups == 1 and convolution.padding_mode == "zeros"
    return plain and not isinstance(convolution.padding, str) and type(convolution).forward is nn.Conv2d.forward


def _convolved(plain: Callable[[Tensor], Tensor], convolution: nn.Conv2d, images: Tensor, call: Call) -> Tensor:
    """Return a convolution of images, from what it gave in a recorded call if one channel of each differs at most."""
    given = call.given
    if given is None or given.shape[1:] != images.shape[1:] or int(_differ(images[:1], given).sum()) > 1:
        return plain(images)
    differ = _differ(images, given)
    if int(differ.sum(1).max()) > 1:
        return plain(images)
    rows, channels = torch.arange(len(images), device=images.device), differ.int().argmax(1)
    change = (images[rows, channels] - given[0, channels])[:, None]
    padding = tuple(map(int, convolution.padding))
    patches = F.unfold(change, convolution.kernel_size, convolution.dilation, padding, convolution.stride)
    kernels = convolution.weight[:, channels].flatten(2).permute(1, 2, 0)
    # Rows of places and columns of channels, which is the layout that the rest of the network runs in.
    before = call.output.permute(0, 2, 3, 1).flatten(1, 2)
    after = torch.baddbmm(before.expand(len(images), -1, -1), patches.transpose(1, 2), kernels)
    return after.view(len(images), *call.output.shape[2:], -1).permute(0, 3, 1, 2)


def _differ(images: Tensor, given: Tensor) -> Tensor:
    return (images != given).flatten(2).any(2)


@contextmanager
def _answering(queues: dict[nn.Module, deque[Any]], later: dict[nn.Module, deque[Call]]) -> Iterator[None]:
    """Let modules return what is queued for them, and run as they are once that is used up."""
    changed = {*queues, *later}
    plain = {module: module.forward for module in changed}
    own = {module: "forward" in vars(module) for module in changed}

    def answer(module: Any) -> Any:
        def forward(*given: Any, **named: Any) -> Any:
            if queues.get(module):
                return queues[module].popleft()
            if later.get(module):
                return _convolved(plain[module], module, given[0], later[module].popleft())
            return plain[module](*given, **named)

        return forward

    try:
        for module in changed:
            vars(module)["forward"] = answer(module)
        yield
    finally:
        for module in changed:
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
    open_calls: list[tuple[int, Tensor | None]] = []
    moments = iter(range(10**9))
    handles = []

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        is_read = isinstance(module, nn.Conv2d | nn.Linear) and inputs
        open_calls.append((next(moments), inputs[0].clone() if is_read else None))

    def end(name: str) -> Any:
        def keep(module: nn.Module, _inputs: object, output: Any) -> None:
            began, given = open_calls.pop()
            copy = tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, output)
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
