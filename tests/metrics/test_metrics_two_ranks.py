"""Two ranks give the very numbers that one gives, also where they share unequally."""

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from lit_robust.metrics import (
    Calibration,
    CorruptionError,
    ErrorConsistency,
    OodDetection,
    RobustAccuracy,
    ShapeBias,
    TopKAccuracy,
    ood_score,
)
from lit_robust.reference.corruption_baselines import benchmark_corruptions, corruption_baseline

COUNT = 301
CATEGORIES = {"a": (0, 1), "b": (2,), "c": (3, 4)}
CELLS = [f"{name}/{severity}" for name in benchmark_corruptions() for severity in range(1, 6)]


def measured(parts: list[torch.Tensor]) -> dict[str, object]:
    """Return what every metric finds after these batches of sample numbers."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(COUNT, 5, generator=generator)
    labels = torch.randint(5, (COUNT,), generator=generator)
    index = torch.arange(COUNT)
    scores = (ood_score(logits, "energy") * 4).round() / 4
    metrics = {
        "accuracy": (TopKAccuracy((1, 2)), (logits, labels)),
        "corruption": (CorruptionError(CELLS, corruption_baseline("imagenet-c")), (logits, labels, index % 75)),
        "ood": (OodDetection(), (scores, index % 6 == 0)),
        "calibration": (Calibration(), (logits.round(), labels)),
        "shape": (ShapeBias(CATEGORIES), (logits, labels % 3, index % 3)),
    }
    found: dict[str, object] = {}
    for name, (metric, columns) in metrics.items():
        for part in parts:
            metric.update(*(column[part] for column in columns))
        found[name] = plain(metric.compute())
    robust, errors = RobustAccuracy(2), ErrorConsistency(2)
    for part in parts:
        robust.update(torch.stack([labels[part] == 1, labels[part] == 2]))
        errors.update(labels[part] == 0, torch.stack([index[part] % 2, index[part] % 3 - 1]))
    return {**found, "robust": plain(robust.compute()), "errors": plain(errors.compute())}


def plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value.tolist()


def share_out(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    whole, share = torch.arange(COUNT), torch.arange(COUNT)[rank::2]
    results = {
        "a remainder": measured(list(share.split(64))),
        "a rank without batches": measured([] if rank else list(whole.split(64))),
        "a rank with an empty batch": measured([share[:0]] if rank else list(whole.split(64))),
    }
    if rank == 0:
        Path(folder, "out.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_are_one(tmp_path):
    # Copies of this process, which has loaded everything.
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=share_out, args=(rank, str(tmp_path))) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    whole = json.loads(json.dumps(measured([torch.arange(COUNT)])))
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found) == 3
    # Not approximately: states are whole numbers, or kept scores whose order does not matter.
    for share, values in found.items():
        assert values == whole, share
