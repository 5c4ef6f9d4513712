"""A backbone whose features ask a memory: images to log-probabilities."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision
from lit_robust.memory import Memory
from lit_robust.memory.directory import PROJECTION
from lit_robust.memory.projection import read_projection
from lit_robust.models import Classifier
from lit_robust.modules.retrieval import ContinuousLayer, NearestLayer, Retrieval

Transform = Literal["none", "softmax"]
Layout = Literal["channels first", "channels last"]
PAPER_LAYERS = {"layer4_bottleneck1_relu": "layer4.1"}
"""Paper 000's names of layers that are not torchvision's: the second of the last stage's three blocks."""
ROWS_AND_COLUMNS: dict[Layout, tuple[int, int]] = {"channels first": (2, 3), "channels last": (1, 2)}
"""The axes of a map's places, by its layout."""


class CacheClassifier(nn.Module):
    """The cache model of paper 000; without a memory it only gives keys.

    Args:
        backbone: the network whose features are the keys.
        layer: whose output is taken, by its name in the network, or as paper 000 calls it.
        transform: done to the output: ``none``, or ``softmax``, which paper 000 does to ``fc``.
    """

    mean: Tensor | None
    components: Tensor | None

    def __init__(self, backbone: Classifier, layer: str, transform: Transform) -> None:
        super().__init__()
        self.backbone = backbone
        self.layer = PAPER_LAYERS.get(layer, layer)
        self.transform = transform
        self.retrieval: ContinuousLayer | NearestLayer | None = None
        self.projects: Literal["", "unit", "raw"] = ""
        self._places: dict[tuple[int, ...], tuple[int, int]] = {}
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("components", None, persistent=False)

    def open(self, memory: Memory, retrieval: Retrieval, device: torch.device) -> None:
        """Answer from ``memory`` from now on."""
        steps = [step for step in memory.manifest.compression if step["kind"] == "components"]
        if steps:
            mean, self.components = read_projection(memory.folder / PROJECTION)
            self.projects = steps[0]["on"]
            self.mean = mean if steps[0]["centring"] == "both" else torch.zeros_like(mean)
        if retrieval.kind == "continuous":
            self.retrieval = ContinuousLayer(memory, retrieval, device)
        else:
            self.retrieval = NearestLayer(memory, retrieval, device)

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1].

        Those of a class without keys, or without neighbours, are -10,000.
        """
        log_probabilities: Tensor = self.asked()(self.queries(images))
        return log_probabilities

    def queries(self, images: Tensor) -> Tensor:
        """Return unit-length fp32 queries ``[B, d]`` of images, as the memory's keys are."""
        vectors = self.vectors(images)
        if self.components is None or self.mean is None:
            return F.normalize(vectors, dim=1)
        if self.projects == "unit":
            vectors = F.normalize(vectors, dim=1)
        with full_precision(images.device.type):
            return F.normalize((vectors - self.mean) @ self.components.T, dim=1)

    def vectors(self, images: Tensor) -> Tensor:
        """Return the layer's fp32 output ``[B, d]``: a map's mean over its places, tokens' mean over the tokens.

        A map is ``[B, C, H, W]``, or ``[B, H, W, C]`` as in Swin; tokens are ``[B, N, C]``, a class token one of them.

        Raises:
            UserError: the output is none of these, or a map whose channels cannot be told from its places.
        """
        output = self.backbone.features(images, self.layer).float()
        if len(output) != len(images) or output.ndim not in (2, 3, 4):
            raise UserError(f"The layer {self.layer!r} gives {list(output.shape)}: choose one of features a sample.")
        if output.ndim == 4:
            output = output.mean(self._places_of(output.shape, images))
        elif output.ndim == 3:
            output = output.mean(1)
        return output.softmax(1) if self.transform == "softmax" else output

    def _places_of(self, shape: torch.Size, images: Tensor) -> tuple[int, int]:
        """Return the axes of a map's rows and columns, found once for each shape."""
        known = (*shape[1:], *images.shape[2:])
        if known not in self._places:
            layout = layout_of_square(shape, images.shape) or self._layout_by_size(shape, images)
            self._places[known] = ROWS_AND_COLUMNS[layout]
        return self._places[known]

    @torch.no_grad()
    def _layout_by_size(self, shape: torch.Size, images: Tensor) -> Layout:
        """Tell a map's layout by how its shape changes with the image's size."""
        larger = images.new_zeros(1, images.shape[1], 2 * images.shape[2], 2 * images.shape[3])
        unclear = (
            f"The layer {self.layer!r} gives {list(shape)}, of which the channels cannot be told from the places: "
            "choose another, such as the one after the pooling."
        )
        try:
            grown = self.backbone.features(larger, self.layer).shape
        except (RuntimeError, ValueError, AssertionError) as error:
            # Some networks take images of one size alone.
            raise UserError(unclear) from error
        layout = layout_of_grown(shape, grown)
        if layout is None:
            raise UserError(unclear)
        return layout

    @property
    def is_sharded(self) -> bool:
        """Whether the keys are spread over the ranks, so that all must ask together."""
        return self.retrieval is not None and self.retrieval.is_sharded

    def asked(self) -> ContinuousLayer | NearestLayer:
        """Return the retrieval.

        Raises:
            UserError: no memory is open.
        """
        if self.retrieval is None:
            raise UserError("The cache model has no memory yet: build it with `lit-robust fit`, then test.")
        return self.retrieval


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
    changed = tuple(axis for axis in (1, 2, 3) if shape[axis] != grown[axis])
    layouts: dict[tuple[int, ...], Layout] = {(): "channels first", (2, 3): "channels first", (1, 2): "channels last"}
    return layouts.get(changed)
