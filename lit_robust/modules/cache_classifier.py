"""A backbone whose features ask a memory: images to log-probabilities."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.errors import UserError
from lit_robust.memory import Memory
from lit_robust.memory.directory import PROJECTION
from lit_robust.memory.projection import read_projection
from lit_robust.models import Classifier
from lit_robust.modules.retrieval import ContinuousLayer, NearestLayer, Retrieval

Transform = Literal["none", "softmax"]
PAPER_LAYERS = {"layer4_bottleneck1_relu": "layer4.1"}
"""Paper 000's names of layers that are not torchvision's: the second of the last stage's three blocks."""


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
        return F.normalize((vectors - self.mean) @ self.components.T, dim=1)

    def vectors(self, images: Tensor) -> Tensor:
        """Return the layer's fp32 output ``[B, d]``: a map's mean over its places, tokens' mean over the tokens."""
        output = self.backbone.features(images, self.layer).float()
        if output.ndim == 4:
            output = output.mean((2, 3))
        elif output.ndim == 3:
            output = output.mean(1)
        if output.ndim != 2:
            raise UserError(f"The layer {self.layer!r} gives {list(output.shape)}: choose one of features a sample.")
        return output.softmax(1) if self.transform == "softmax" else output

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
