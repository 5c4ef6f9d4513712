"""Episodic memory: keys and values on disk, retrieval from all of them or from the nearest, and compression."""

from lit_robust.memory.compression import cluster, project
from lit_robust.memory.continuous import FLOOR, chunks_of, class_log_sums, log_probabilities
from lit_robust.memory.nearest import nearest_keys, neighbour_log_sums
from lit_robust.memory.store import Manifest, Memory, open_memory

__all__ = [
    "FLOOR",
    "Manifest",
    "Memory",
    "chunks_of",
    "class_log_sums",
    "cluster",
    "log_probabilities",
    "nearest_keys",
    "neighbour_log_sums",
    "open_memory",
    "project",
]
