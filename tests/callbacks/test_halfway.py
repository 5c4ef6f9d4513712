"""What an evaluation of two sets counted of the first: written, found again, and refused where it is another test's."""

import pytest
import torch

from lit_robust.callbacks.followed import FollowedSet
from lit_robust.callbacks.halfway import counted, put_back, read_half, sets_through, write_half
from lit_robust.core.batch import EvaluationSet
from lit_robust.metrics import TopKAccuracy
from lit_robust.metrics.ood_detection import OodDetection

CPU = torch.device("cpu")


def pair():
    sets = [FollowedSet.start(EvaluationSet(name, 9, {}), number, CPU) for number, name in enumerate(("one", "two"))]
    return {"top1": TopKAccuracy((1,)), "scores": OodDetection()}, sets


def count(metrics, sets, numbers):
    generator = torch.Generator().manual_seed(0)
    logits, strange = torch.randn(9, 4, generator=generator), torch.arange(9) % 3 == 0
    for one, rows in zip(sets, numbers, strict=False):
        metrics["top1"].update(logits[rows], torch.arange(9)[rows] % 4)
        metrics["scores"].update(logits[rows, 0].abs(), strange[rows])
        one.seen = one.seen + len(rows)


def test_what_was_counted_goes_on(tmp_path):
    halves = [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    metrics, sets = pair()
    count(metrics, sets, halves)
    stopped, first = pair()
    assert counted(stopped, first, 0) is None
    count(stopped, first, halves[:1])
    half = counted(stopped, first, 1)
    write_half(half, tmp_path, 0, "this")
    assert sets_through(tmp_path, 1, "this") == ("one",)
    resumed, again = pair()
    put_back(read_half(tmp_path, 0, ("one",)), resumed, again)
    count(resumed, again[1:], halves[1:])
    assert [int(one.seen) for one in again] == [5, 4]
    assert torch.equal(resumed["top1"].compute(), metrics["top1"].compute())
    for name, value in metrics["scores"].compute().items():
        assert torch.equal(resumed["scores"].compute()[name], value)


@pytest.mark.parametrize(("ranks", "identity"), [(2, "this"), (1, "another")])
def test_a_rank_that_lacks_or_another_test_is_nothing(tmp_path, ranks, identity):
    metrics, sets = pair()
    count(metrics, sets, [[0, 1]])
    write_half(counted(metrics, sets, 1), tmp_path, 0, "this")
    assert sets_through(tmp_path, ranks, identity) == ()
