"""The cache model: a backbone whose features ask a memory, images to log-probabilities; and how it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from lit_robust.core.errors import UserError, check_choice
from lit_robust.core.precision import full_precision
from lit_robust.memory.compression import read_projection
from lit_robust.memory.continuous import (
    CHUNK_KEYS,
    CHUNK_KEYS_ON_GPU,
    chunks_of,
    class_log_sums,
    class_log_sums_at,
    log_probabilities,
    sharded_log_sums,
    share_of,
)
from lit_robust.memory.nearest import Search, exact_search, index_facts, neighbour_log_sums, open_index, recall
from lit_robust.memory.store import Memory
from lit_robust.models import Classifier
from lit_robust.models.taps import PLACES, Layout, layout_of

Kind = Literal["continuous", "nearest"]
Precision = Literal["stored", "float32", "bfloat16", "float16"]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RECALL_QUERIES = 256  # Of each rank, or some more; of these the exact neighbours are found, too.


@dataclass(frozen=True)
class Retrieval:
    """How the memory is asked.

    Attributes:
        kind: ``continuous``, all keys take part; ``nearest``, the ``k`` most similar.
        theta: inverse temperature of the similarity, exp(theta q.mu); Orhan and Lake (2019) search 10, 20, ... 90.
        k: neighbours.
        index: description of a Faiss index in the memory's folder, such as ``IVF1024,Flat``, which finds the neighbours
            approximately; null finds them exactly. The results then say which share of the exact ones it found.
        search: Faiss's settings of the search in that index, such as ``nprobe=64``; empty for its own.
        precision: of the keys in use: ``stored``, as on disk; 16 bits halve them, and are right to about 1e-3 times
            theta; they are meant for GPUs, on which their speed has not been measured.
        sharded: spread the keys over the ranks, where they do not fit on one device. Then all ranks answer together,
            and adversarial accuracies, whose batches differ from rank to rank, are refused.
    """

    kind: Kind = "continuous"
    theta: float = 50.0
    k: int = 50
    index: str | None = None
    search: str = ""
    precision: Precision = "stored"
    sharded: bool = False

    def __post_init__(self) -> None:
        check_choice("retrieval.kind", self.kind, get_args(Kind))
        check_choice("retrieval.precision", self.precision, get_args(Precision))
        if not 0 < self.theta < float("inf"):
            raise UserError(f"retrieval.theta is {self.theta}: give a number above 0, such as 50.")
        if self.k < 1:
            raise UserError(f"retrieval.k is {self.k}: give 1 or more neighbours.")
        if self.kind == "continuous" and (self.index is not None or self.search):
            raise UserError(
                f"retrieval.index {self.index!r} finds neighbours, and kind continuous asks all keys: set kind to "
                "nearest, or index to null."
            )
        if self.search and self.index is None:
            raise UserError(
                f"retrieval.search {self.search!r} is the setting of an index, and none is named: set retrieval.index, "
                "or leave search empty."
            )
        if self.sharded and self.kind == "nearest":
            raise UserError("retrieval.sharded spreads the keys of kind continuous: set sharded to false.")


class ContinuousLayer(nn.Module):
    """All keys take part; see `lit_robust.memory.continuous`.

    Args:
        memory: opened.
        retrieval: the settings.
        device: that queries will be on.
    """

    def __init__(self, memory: Memory, retrieval: Retrieval, device: torch.device) -> None:
        super().__init__()
        keys, labels = memory.tensors()
        self.is_sharded = retrieval.sharded and distributed.is_available() and distributed.is_initialized()
        if self.is_sharded:
            own = share_of(len(keys), distributed.get_rank(), distributed.get_world_size())
            keys, labels = keys[own], labels[own]
        self.theta = retrieval.theta
        self.num_classes = memory.manifest.num_classes
        self.keys = _held(keys, retrieval.precision, device)
        self.chunks = chunks_of(labels.to(device), CHUNK_KEYS_ON_GPU if device.type == "cuda" else CHUNK_KEYS)

    def forward(self, queries: Tensor) -> Tensor:
        """Return log-probabilities ``[B, num_classes]`` of unit-length queries ``[B, d]``."""
        sums = sharded_log_sums if self.is_sharded else class_log_sums
        return log_probabilities(sums(queries, self.keys, self.chunks, self.num_classes, self.theta))

    def at(self, queries: Tensor, thetas: Sequence[float]) -> Tensor:
        """Return log-probabilities at several thetas, ``[len(thetas), B, num_classes]``; without gradient."""
        if self.is_sharded:
            raise UserError("Several thetas are tried on keys that are not spread: set retrieval.sharded to false.")
        sums = class_log_sums_at(queries, self.keys, self.chunks, self.num_classes, thetas)
        return torch.stack([log_probabilities(one) for one in sums])


class NearestLayer(nn.Module):
    """The k most similar keys take part; see `lit_robust.memory.nearest`.

    Args:
        memory: opened.
        retrieval: the settings.
        device: that queries will be on.
    """

    is_sharded = False

    def __init__(self, memory: Memory, retrieval: Retrieval, device: torch.device) -> None:
        super().__init__()
        keys, labels = memory.tensors()
        if retrieval.k > len(keys):
            raise UserError(
                f"retrieval.k is {retrieval.k}, but {memory.folder} has {len(keys)} keys: give {len(keys)} or less."
            )
        self.theta, self.k, self.retrieval = retrieval.theta, retrieval.k, retrieval
        self.num_classes = memory.manifest.num_classes
        self.approximate: Search | None = None
        if retrieval.index is not None:
            self.approximate = open_index(memory, retrieval.index, retrieval.search, device)
        self.compared, self.recalled = 0, 0.0
        self.keys, self.labels = _held(keys, retrieval.precision, device), labels.to(device)

    def forward(self, queries: Tensor) -> Tensor:
        """Return log-probabilities ``[B, num_classes]`` of unit-length queries ``[B, d]``."""
        return self._answer(queries, self.neighbours(queries), self.theta)

    def at(self, queries: Tensor, thetas: Sequence[float]) -> Tensor:
        """Return log-probabilities at several thetas, ``[len(thetas), B, num_classes]``."""
        rows = self.neighbours(queries)
        return torch.stack([self._answer(queries, rows, theta) for theta in thetas])

    def neighbours(self, queries: Tensor) -> Tensor:
        """Return the rows ``[B, k]`` of the neighbours, -1 for those an approximate search did not find."""
        return (self.approximate or exact_search(self.keys))(queries, self.k)

    @property
    def wants_comparison(self) -> bool:
        """Whether the search is approximate, and too few of its neighbours were compared with the exact ones."""
        return self.approximate is not None and self.compared < RECALL_QUERIES

    def compare(self, queries: Tensor) -> None:
        """Find the exact neighbours, too, and count which share of them the approximate search finds."""
        self.recalled += float(recall(self.neighbours(queries), exact_search(self.keys)(queries, self.k)).sum())
        self.compared += len(queries)

    def facts(self) -> dict[str, object]:
        """Return what was found out about the search, for the results file."""
        if self.retrieval.index is None:
            return {}
        facts: dict[str, object] = {**index_facts(self.retrieval.index, self.retrieval.search)}
        if self.compared:
            facts |= {
                "recall": round(self.recalled / self.compared, 4),
                "recall_queries": self.compared,
                "recall_of": "the first that rank 0 asked, of whichever set",
            }
        return facts

    def _answer(self, queries: Tensor, rows: Tensor, theta: float) -> Tensor:
        return log_probabilities(neighbour_log_sums(queries, self.keys, self.labels, rows, self.num_classes, theta))


def _held(keys: Tensor, precision: Precision, device: torch.device) -> Tensor:
    # No buffer: each rank has its own keys, which Lightning would send from one to all. On a CPU they stay mapped.
    return keys.to(device, keys.dtype if precision == "stored" else TYPES[precision])


Transform = Literal["none", "softmax"]
PAPER_LAYERS = {"layer4_bottleneck1_relu": "layer4.1"}
"""Orhan and Lake's names of layers that are not torchvision's: the second of the last stage's three blocks."""


class CacheClassifier(nn.Module):
    """The cache model of Orhan and Lake (2019); without a memory it only gives keys.

    Args:
        backbone: the network whose features are the keys.
        layer: whose output is taken, by its name in the network, or as Orhan and Lake (2019) call it.
        transform: done to the output: ``none``, or ``softmax``, which Orhan and Lake (2019) do to ``fc``.
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
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("components", None, persistent=False)

    def open(self, memory: Memory, retrieval: Retrieval, device: torch.device) -> None:
        """Answer from ``memory`` from now on."""
        steps = [step for step in memory.manifest.compression if step["kind"] == "components"]
        if steps:
            mean, self.components = read_projection(memory)
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
            UserError: the output is something else, or a map whose channels cannot be distinguished from its places.
        """
        output = self.backbone.features(images, self.layer).float()
        known = (*output.shape[1:], *images.shape[2:])
        if known not in self._layouts or len(output) != len(images):
            self._layouts[known] = layout_of(self.backbone, self.layer, output, images)
        places = PLACES[self._layouts[known]]
        output = output.mean(places) if places else output
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
