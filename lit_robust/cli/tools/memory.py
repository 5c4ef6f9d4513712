"""``lit-robust memory ...``: look at a memory, check it, make it smaller, index it."""

import json
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_robust.cli.tools.parser import parser_of

BUILT = "of the memory, as `lit-robust fit` built it"
MADE = "of the memory, as `lit-robust fit` built it, or `memory cluster` or `memory project` made it"


def verify(words: list[str]) -> None:
    """Check a memory and print its manifest."""
    parser = parser_of(
        "memory verify",
        "Compare a memory's files with its manifest, digests included, and its indexes with their notes; print the "
        "manifest.",
    )
    parser.add_argument("folder", type=Path, help=MADE)
    options = parser.parse_args(words)
    from dataclasses import asdict

    from lit_robust.memory import open_memory
    from lit_robust.memory.nearest import check_indexes

    memory = open_memory(options.folder)
    indexes = check_indexes(memory)
    print(json.dumps(asdict(memory.manifest), indent=1))
    print(f"{options.folder} is whole: {memory.manifest.count:,} keys of {memory.manifest.dimensions} dimensions.")
    if indexes:
        print(f"So are its indexes: {'; '.join(indexes)}.")


def cluster(words: list[str]) -> None:
    """Write a memory of fewer keys."""
    parser = parser_of(
        "memory cluster",
        "Write a memory whose keys are the centres of clusters within each class (mini-batch k-means).",
    )
    parser.add_argument("folder", type=Path, help=BUILT)
    parser.add_argument("output", type=Path, help="folder of the new memory")
    parser.add_argument("--factor", type=PositiveInt, default=4, help="about how many times fewer keys")
    parser.add_argument(
        "--on", type=Literal["unit", "raw"], default="raw", help="keys of unit length, or as the network gave them"
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the first centres and of the batches")
    options = parser.parse_args(words)
    from lit_robust.memory import cluster, open_memory

    made = cluster(open_memory(options.folder), options.output, options.factor, options.on, options.seed)
    print(f"{options.output} holds {made.count:,} keys of {made.dimensions} dimensions.")


def project(words: list[str]) -> None:
    """Write a memory of fewer dimensions."""
    parser = parser_of("memory project", "Write a memory whose keys are projected on their principal components.")
    parser.add_argument(
        "folder", type=Path, help="of the memory, as `lit-robust fit` built it, or `memory cluster` made it"
    )
    parser.add_argument("output", type=Path, help="folder of the new memory")
    parser.add_argument("--dimensions", type=PositiveInt, default=512, help="how many components to keep")
    parser.add_argument(
        "--on", type=Literal["unit", "raw"], default="unit", help="keys of unit length, or as the network gave them"
    )
    parser.add_argument(
        "--centring",
        type=Literal["both", "keys"],
        default="both",
        help="subtract the mean from keys and queries; or, as the code of paper 000 does by mistake, from keys alone",
    )
    options = parser.parse_args(words)
    from lit_robust.memory import open_memory, project

    made = project(open_memory(options.folder), options.output, options.dimensions, options.on, options.centring)
    share = made.compression[-1]["explained_variance"]
    print(
        f"{options.output} holds {made.count:,} keys of {made.dimensions} dimensions, which keep {100 * share:.1f} % "
        "of the variance."
    )


def index(words: list[str]) -> None:
    """Build an index for approximate search."""
    parser = parser_of("memory index", "Build a Faiss index of a memory's keys, kept in the memory's folder.")
    parser.add_argument("folder", type=Path, help=MADE)
    parser.add_argument(
        "--factory", type=str, default="HNSW32", help="Faiss's description, such as HNSW32, IVF1024,Flat, IVF1024,PQ64"
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the keys that the index is trained on")
    options = parser.parse_args(words)
    from lit_robust.memory import open_memory
    from lit_robust.memory.nearest import build_index

    file = build_index(open_memory(options.folder), options.factory, options.seed)
    print(f"Wrote {file}: test with --model.retrieval.kind nearest --model.retrieval.index {options.factory}.")
