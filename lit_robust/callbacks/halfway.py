"""What an evaluation of two sets has counted of the one that is through, kept in files over an interruption."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_robust.callbacks.followed import FollowedSet
from lit_robust.core.files import write_tensors


@dataclass(frozen=True)
class Halfway:
    """One rank's counts.

    Attributes:
        done: names of the sets that are through.
        tensors: the metrics' sums and scores, and how many samples came, by name.
    """

    done: tuple[str, ...]
    tensors: Mapping[str, Tensor]


def counted(metrics: Mapping[str, Metric], followed: Sequence[FollowedSet], begins: int) -> Halfway | None:
    """Return what was counted before a loader begins; None where none of the sets is through.

    Args:
        metrics: all that the evaluation counts with, by name.
        followed: its sets.
        begins: number of that loader.
    """
    through = [one for one in followed if one.number < begins]
    if not through:
        return None
    tensors = {f"seen.{one.described.name}": one.seen for one in through}
    tensors |= {f"broken.{one.described.name}": one.broken for one in through}
    for name, metric in metrics.items():
        for state, value in metric.metric_state.items():
            # A list that has nothing yet would say nothing of its type.
            parts = value if isinstance(value, list) else [value]
            tensors |= {f"{name}.{state}": torch.cat(parts) if isinstance(value, list) else value} if parts else {}
    return Halfway(tuple(one.described.name for one in through), tensors)


def put_back(half: Halfway, metrics: Mapping[str, Metric], followed: Sequence[FollowedSet]) -> None:
    """Give metrics and sets, which have counted nothing, what they had counted."""
    for one in followed:
        if one.described.name in half.done:
            one.seen = half.tensors[f"seen.{one.described.name}"].to(one.seen.device)
            one.broken = half.tensors[f"broken.{one.described.name}"].to(one.broken.device)
    for name, metric in metrics.items():
        for state, value in metric.metric_state.items():
            kept = half.tensors.get(f"{name}.{state}")
            if kept is not None:
                setattr(metric, state, [kept.to(metric.device)] if isinstance(value, list) else kept.to(metric.device))
                metric._update_count += 1  # It warns of a metric that was never updated.


def write_half(half: Halfway, folder: Path, rank: int, identity: str) -> None:
    """Write one rank's counts.

    Args:
        half: the counts.
        folder: of the evaluation.
        rank: whose they are.
        identity: of the test.
    """
    write_tensors(_file(folder, rank), half.tensors, {"identity": identity, "done": json.dumps(half.done)})


def sets_through(folder: Path, ranks: int, identity: str) -> tuple[str, ...]:
    """Return the names of the sets that all ranks have counted; none where a rank's file is of another test, or lacks.

    Args:
        folder: of the evaluation.
        ranks: how many.
        identity: of the test.
    """
    from safetensors import safe_open

    found = set()
    for rank in range(ranks):
        file = _file(folder, rank)
        if not file.is_file():
            return ()
        with safe_open(file, framework="pt") as content:
            told = content.metadata()
        if told["identity"] != identity:
            return ()
        found.add(tuple(json.loads(told["done"])))
    return found.pop() if len(found) == 1 else ()


def read_half(folder: Path, rank: int, done: tuple[str, ...]) -> Halfway:
    """Read one rank's counts, of the sets that `sets_through` names."""
    from safetensors.torch import load_file

    return Halfway(done, load_file(_file(folder, rank)))


def _file(folder: Path, rank: int) -> Path:
    return folder / f"halfway-{rank}.safetensors"
