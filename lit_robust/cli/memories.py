"""``lit-robust memory ...``: check a memory, make it smaller, index it; typed functions, as in ``commands``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from lit_robust.cli.options import Count, Seed


def memory_verify(folder: Path) -> None:
    """Compare a memory's files with its manifest, digests included, and its indexes with their notes.

    It prints the manifest.

    Args:
        folder: of the memory, as `lit-robust fit` built it, or `memory cluster` or `memory project` made it
    """
    from lit_robust.memory import open_memory
    from lit_robust.memory.nearest import check_indexes

    memory = open_memory(folder)
    indexes = check_indexes(memory)
    print(json.dumps(asdict(memory.manifest), indent=1))
    print(f"{folder} is whole: {memory.manifest.count:,} keys of {memory.manifest.dimensions} dimensions.")
    if indexes:
        print(f"So are its indexes: {'; '.join(indexes)}.")


def memory_cluster(
    folder: Path, output: Path, *, factor: Count = 4, on: Literal["unit", "raw"] = "raw", seed: Seed = 0
) -> None:
    """Write a memory whose keys are the centres of clusters within each class (mini-batch k-means).

    Args:
        folder: of the memory, as `lit-robust fit` built it
        output: folder of the new memory
        factor: about how many times fewer keys
        on: keys of unit length, or as the network gave them
        seed: of the first centres and of the batches
    """
    from lit_robust.memory import cluster, open_memory

    smaller = cluster(open_memory(folder), output, factor, on, seed)
    print(f"{output} holds {smaller.count:,} keys of {smaller.dimensions} dimensions.")


def memory_project(
    folder: Path,
    output: Path,
    *,
    dimensions: Count = 512,
    on: Literal["unit", "raw"] = "unit",
    centring: Literal["both", "keys"] = "both",
) -> None:
    """Write a memory whose keys are projected on their principal components.

    Args:
        folder: of the memory, as `lit-robust fit` built it, or `memory cluster` made it
        output: folder of the new memory
        dimensions: how many components to keep
        on: keys of unit length, or as the network gave them
        centring: subtract the mean from keys and queries; or from keys alone, as the code of Orhan & Lake 2019 does by
            mistake
    """
    from lit_robust.memory import open_memory, project

    smaller = project(open_memory(folder), output, dimensions, on, centring)
    share = 100 * smaller.compression[-1]["explained_variance"]
    print(f"{output} holds {smaller.count:,} keys of {smaller.dimensions} dimensions, {share:.1f} % of the variance.")


def memory_index(folder: Path, *, factory: str = "HNSW32", seed: Seed = 0) -> None:
    """Build a Faiss index of a memory's keys, for approximate search, kept in the memory's folder.

    Args:
        folder: of the memory, as `lit-robust fit` built it, or `memory cluster` or `memory project` made it
        factory: Faiss's description, such as HNSW32, IVF1024,Flat, IVF1024,PQ64
        seed: of the keys that the index is trained on
    """
    from lit_robust.memory import open_memory
    from lit_robust.memory.nearest import build_index

    file = build_index(open_memory(folder), factory, seed)
    print(f"Wrote {file}: test with --model.retrieval.kind nearest --model.retrieval.index {factory}.")
