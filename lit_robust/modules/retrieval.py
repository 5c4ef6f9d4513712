"""How a cache model asks its memory: settings, and the two ways of retrieval as layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, distributed, nn

from lit_robust.core.errors import UserError
from lit_robust.memory import Memory, chunks_of, class_log_sums, log_probabilities, neighbour_log_sums
from lit_robust.memory.chunks import KEYS, KEYS_ON_GPU
from lit_robust.memory.continuous import class_log_sums_at
from lit_robust.memory.index import Search, exact_search, index_facts, open_index, recall
from lit_robust.memory.sharded import sharded_log_sums, share_of

Kind = Literal["continuous", "nearest"]
Precision = Literal["stored", "float32", "bfloat16", "float16"]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RECALL_QUERIES = 256  # Of each rank, or some more; of these the exact neighbours are found, too.


@dataclass(frozen=True)
class Retrieval:
    """How the memory is asked.

    Attributes:
        kind: ``continuous``, all keys take part; ``nearest``, the ``k`` most similar.
        theta: sharpness of the similarity, exp(theta q.mu); paper 000 searches 10, 20, ... 90.
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
        for name, value, choices in (("kind", self.kind, Kind), ("precision", self.precision, Precision)):
            if value not in get_args(choices):
                raise UserError(f"retrieval.{name} is {value!r}: choose one of {', '.join(get_args(choices))}.")
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
        self.chunks = chunks_of(labels.to(device), KEYS_ON_GPU if device.type == "cuda" else KEYS)

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
    """The k most similar keys take part; see `lit_robust.memory.neighbours`.

    Args:
        memory: opened.
        retrieval: the settings.
        device: that queries will be on.
    """

    is_sharded = False

    def __init__(self, memory: Memory, retrieval: Retrieval, device: torch.device) -> None:
        super().__init__()
        keys, labels = memory.tensors()
        self.theta, self.k, self.retrieval = retrieval.theta, min(retrieval.k, len(keys)), retrieval
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
