"""Episodic memory: keys and values on disk, retrieval from all of them or from the nearest, and compression."""

from lit_robust.memory.build import (
    MemoryBuilder,
    begin_memory,
    building_alone,
    check_place,
    class_order,
    is_begun,
    part_folder,
    resume_memory,
    samples_done,
)
from lit_robust.memory.compression import cluster, project
from lit_robust.memory.continuous import FLOOR, chunks_of, class_log_sums, log_probabilities
from lit_robust.memory.nearest import nearest_keys, neighbour_log_sums
from lit_robust.memory.store import Manifest, Memory, open_memory

__all__ = [
    "FLOOR",
    "Manifest",
    "Memory",
    "MemoryBuilder",
    "begin_memory",
    "building_alone",
    "check_place",
    "chunks_of",
    "class_log_sums",
    "class_order",
    "cluster",
    "is_begun",
    "log_probabilities",
    "nearest_keys",
    "neighbour_log_sums",
    "open_memory",
    "part_folder",
    "project",
    "resume_memory",
    "samples_done",
]
