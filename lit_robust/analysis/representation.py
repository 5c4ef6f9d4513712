"""A network's representation of an image: a vector of one layer, with a gradient that may pass the layer's ReLU."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_robust.attacks import frozen
from lit_robust.core.errors import UserError
from lit_robust.models import Classifier
from lit_robust.models.taps import PLACES, Layout, layout_of, outputs

Bounds = tuple[float, float]
RELU: Bounds = (0.0, float("inf"))
RECTIFIERS: Mapping[Any, Bounds] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), RELU),
    F.relu6: (0.0, 6.0),
}
# What autograd calls the steps that move or average values, and so pass on a gradient as it is, up to a factor.
PASSING = re.compile(
    r"(Mkldnn)?AdaptiveAvgPool2D|AvgPool2D|Mean|(Native)?Dropout|Cat|Clone|Contiguous|ToCopy|Alias|ReshapeAlias|AsStrided|"
    r"(Unsafe)?View|Expand|Flatten|(Uns|S)queeze|Permute|Transpose|Select|Slice"
)


class _Identity(torch.autograd.Function):
    """Clamps on the way forward, and passes the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _Rectifiers(TorchFunctionMode):
    """Numbers the calls of ReLU and ReLU6 in a forward pass, and makes those of some numbers straight.

    It acts on calls, not on modules: a module that is called several times is straight at one call only, a function
    without a module is found, too, and nothing of the network is changed that would have to be restored.

    Args:
        straight: numbers of the calls whose gradient is the identity's.
    """

    def __init__(self, straight: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.straight = straight
        self.calls: dict[Any, tuple[int, Bounds]] = {}
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        bounds = RECTIFIERS.get(func)
        if func is F.hardtanh:  # What the module ReLU6 calls.
            placed = dict(zip(("input", "min_val", "max_val"), args, strict=False)) | given
            bounds = (float(placed.get("min_val", -1)), float(placed.get("max_val", 1)))
        if bounds is None or bounds[0] != 0:
            return func(*args, **given)
        number, self.count = self.count, self.count + 1
        if number in self.straight:
            return _Identity.apply(args[0] if args else given["input"], *bounds)
        result = func(*args, **given)
        self.calls[result.grad_fn] = number, bounds
        return result


class Straight(NamedTuple):
    """Which calls of a ReLU the gradient passes as if they were not there.

    Attributes:
        calls: their numbers in the order of a forward pass.
        kinds: ``relu``, ``relu6``, or what else the representation ends in, such as ``native_layer_norm``.
    """

    calls: frozenset[int]
    kinds: tuple[str, ...]


NOT_STRAIGHT = Straight(frozenset(), ())


@dataclass(frozen=True)
class Representation:
    """Images to vectors: the activations of one layer, maps averaged over their places.

    A representation that ends in a ReLU has no gradient along a coordinate that is 0, so no ascent can raise it. With
    ``straight_through`` the gradient passes the last ReLU, or each of several that end in it side by side, as if it
    were the identity; values stay what they are (Engstrom et al. 2019, ``fake_relu`` of their code). A representation
    that ends in something else, such as LayerNorm, has a gradient everywhere, and nothing is passed.

    Attributes:
        network: images in [0, 1] to logits.
        layer: dotted name of the layer inside the network; null for what its last linear layer is given.
        straight: see ``of``.
        layout: of the layer's output.
    """

    network: Classifier
    layer: str | None = None
    straight: Straight = NOT_STRAIGHT
    layout: Layout = "vectors"

    @classmethod
    def of(
        cls, network: Classifier, image: Tensor, layer: str | None = None, straight_through: bool = True
    ) -> "Representation":
        """Return a network's representation, having looked at one forward pass.

        Args:
            network: images in [0, 1] to logits; left as it was.
            image: float32 ``[1, C, H, W]`` in [0, 1], any one of the size to come.
            layer: dotted name; null for what the network's last linear layer is given, the penultimate layer.
            straight_through: let the gradient pass the last ReLU.

        Raises:
            UserError: there is no such layer, it gives no vector or map, or the network has no linear layer.
        """
        layout: Layout = "vectors"
        with torch.inference_mode(False), torch.enable_grad(), frozen(network):
            if layer is not None:
                layout = layout_of(network, layer, outputs(network, image, [layer])[layer], image)
            plain = cls(network, layer, layout=layout)
            if not straight_through:
                plain(image.clone())
                return plain
            with _Rectifiers() as seen:
                values = plain(image.clone().requires_grad_(True))
            found = _ends(values.grad_fn, seen.calls)
            straight = cls(network, layer, found, layout)
            if not torch.equal(straight(image.clone().requires_grad_(True)), values):
                raise UserError(
                    f"The network behind {layer or 'its last layer'} uses what its ReLU writes into, not what it "
                    "returns, so the gradient cannot pass it: set straight_through to false."
                )
            return straight

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 vectors ``[B, D]`` of images ``[B, C, H, W]`` in [0, 1]."""
        with _Rectifiers(self.straight.calls):
            if self.layer is None:
                return penultimate(self.network, images)
            values = outputs(self.network, images, [self.layer])[self.layer]
        return as_vectors(values, self.layout)

    def protocol(self) -> dict[str, Any]:
        """Return plain values for the results file."""
        passed = [kind for kind in self.straight.kinds if kind.startswith("relu")] if self.straight.calls else []
        return {"layer": self.layer or "penultimate", "straight_through": passed or "none"}


def as_vectors(values: Tensor, layout: Layout) -> Tensor:
    """Return float32 vectors ``[B, D]`` of a layer's output: its mean over the places."""
    places = PLACES[layout]
    return (values.mean(places) if places else values).float()


def penultimate(network: Classifier, images: Tensor) -> Tensor:
    """Return what the network's last linear layer is given, float32 ``[B, D]``, for images ``[B, C, H, W]`` in [0, 1].

    Raises:
        UserError: the network calls no linear layer, or one of other than vectors.
    """
    given: list[Tensor] = []
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for module in linear]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not given:
        raise UserError("The network has no linear layer, so its penultimate layer is unknown: name a layer.")
    if given[-1].ndim != 2:
        raise UserError(f"The network's last linear layer is given {list(given[-1].shape)}: name a layer of vectors.")
    return given[-1].float()


def _ends(last: Any, calls: Mapping[Any, tuple[int, Bounds]]) -> Straight:
    """Follow autograd's graph from a representation to the steps that it ends in, past those that move values alone."""
    found, kinds, waiting, seen = set(), set(), [last], set()
    while waiting:
        step = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in calls:
            number, (_, high) = calls[step]
            found.add(number)
            kinds.add("relu" if high == float("inf") else f"relu{high:g}")
            continue
        name = type(step).__name__.split("Backward")[0]
        if PASSING.fullmatch(name):
            waiting += [before for before, _ in step.next_functions]
        else:
            kinds.add("".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_"))
    return Straight(frozenset(found), tuple(sorted(kinds)))
