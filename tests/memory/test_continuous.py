"""Continuous retrieval against the plain expression in float64."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from lit_robust.memory import FLOOR, chunks_of, class_log_sums, continuous, log_probabilities
from lit_robust.memory.build import class_order
from lit_robust.memory.continuous import QUERIES, class_log_sums_at, sharded_log_sums


def problem(count, classes, dimensions=16, queries=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(count, dimensions, generator=generator))
    labels = torch.randint(classes, (count,), generator=generator).sort().values
    return keys, labels, F.normalize(torch.randn(queries, dimensions, generator=generator))


def brute_force(queries, keys, labels, classes, theta):
    """Equation 2 of Orhan and Lake (2019) in float64: softmax over all keys, times one-hot values."""
    weights = (theta * queries.double() @ keys.double().T).softmax(1)
    return weights @ F.one_hot(labels, classes).double()


@pytest.mark.parametrize("theta", [1.0, 10.0, 90.0, 100.0])
@pytest.mark.parametrize(
    ("count", "classes"), [(1, 1), (1, 5), (3, 3), (57, 1), (1000, 10), (5000, 700), (9001, 3), (100_000, 1000)]
)
def test_probabilities(count, classes, theta):
    keys, labels, queries = problem(count, classes)
    expected = brute_force(queries, keys, labels, classes, theta)
    found = log_probabilities(class_log_sums(queries, keys, chunks_of(labels), classes, theta)).double().exp()
    # Probabilities below fp32's normal numbers have fewer digits in any fp32 result.
    large = expected > 1e-30
    # An exponent of 100 rounds to 4e-6, and so does the probability in proportion.
    torch.testing.assert_close(found[large], expected[large], rtol=1e-5 if theta <= 10 else 3e-5, atol=0)
    assert (found[expected == 0] == 0).all()


@pytest.mark.parametrize("theta", [1.0, 50.0, 100.0])
@pytest.mark.parametrize(("count", "classes"), [(1, 1), (57, 4), (5000, 700), (20_000, 5)])
def test_gradients(count, classes, theta):
    keys, labels, queries = problem(count, classes)
    target = labels[torch.arange(len(queries)) % count]
    exact = queries.double().requires_grad_(True)
    F.nll_loss(brute_force(exact, keys, labels, classes, theta).log(), target, reduction="sum").backward()
    ours = queries.clone().requires_grad_(True)
    F.nll_loss(
        log_probabilities(class_log_sums(ours, keys, chunks_of(labels), classes, theta)), target, reduction="sum"
    ).backward()
    scale = exact.grad.abs().max()
    assert (ours.grad.double() - exact.grad).abs().max() <= 1e-4 * scale + 1e-6


@pytest.mark.parametrize(("keys_of_chunk", "classes_of_chunk"), [(1, 1), (3, 64), (64, 1), (64, 2), (4096, 64)])
def test_no_chunk_matters(keys_of_chunk, classes_of_chunk):
    keys, labels, queries = problem(300, 17)
    whole = class_log_sums(queries, keys, chunks_of(labels), 17, 60.0)
    cut = chunks_of(labels, keys_of_chunk, classes_of_chunk)
    assert [chunk.rows.start for chunk in cut[1:]] == [chunk.rows.stop for chunk in cut[:-1]]
    assert cut[-1].rows.stop == 300
    # Sums of the same numbers in another order.
    torch.testing.assert_close(class_log_sums(queries, keys, cut, 17, 60.0), whole, rtol=1e-6, atol=1e-5)


def test_more_queries_than_a_block_holds():
    keys, labels, queries = problem(100, 7, queries=2 * QUERIES + 3)
    chunks = chunks_of(labels)
    whole = class_log_sums(queries, keys, chunks, 7, 30.0)
    for few in (slice(0, 3), slice(QUERIES - 2, QUERIES + 2), slice(-3, None)):
        alone = class_log_sums(queries[few], keys, chunks, 7, 30.0)
        torch.testing.assert_close(whole[few], alone, rtol=1e-6, atol=1e-5)


def test_nothing_overflows_and_no_class_is_lost_that_fp32_can_hold():
    # The nearest key at similarity 1, another class's at -1: apart by e^200, which fp32 has no number for.
    keys, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    sums = class_log_sums(torch.tensor([[1.0, 0.0]]), keys, chunks_of(labels, 1), 2, 100.0)
    torch.testing.assert_close(sums, torch.tensor([[100.0, -100.0]]))
    torch.testing.assert_close(log_probabilities(sums), torch.tensor([[0.0, -200.0]]))


def test_long_keys_do_not_overflow_either():
    keys, labels, queries = problem(50, 3)
    expected = brute_force(40 * queries, 40 * keys, labels, 3, 1.0)
    found = log_probabilities(class_log_sums(40 * queries, 40 * keys, chunks_of(labels), 3, 1.0)).exp()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-30)  # Exponents up to 1600.


def test_classes_without_keys():
    keys, _, queries = problem(10, 1)
    labels = torch.tensor([1] * 4 + [3] * 6)
    queries.requires_grad_(True)
    found = log_probabilities(class_log_sums(queries, keys, chunks_of(labels), 5, 20.0))
    assert (found[:, [0, 2, 4]] == FLOOR).all()
    assert (found[:, [0, 2, 4]].exp() == 0).all()
    F.cross_entropy(found, torch.full((7,), 3)).backward()
    assert queries.grad.isfinite().all()
    assert queries.grad.abs().sum() > 0


def test_a_class_that_a_chunks_shift_loses_leaves_the_others_gradients(monkeypatch):
    """As on a GPU, where a chunk has one shift: a class e^180 less likely is lost, and nothing becomes NaN."""

    def of_chunk(exponents, chunk):
        return exponents.amax(0, keepdim=True).expand(chunk.last + 1 - chunk.first, -1)

    monkeypatch.setattr(continuous, "_highest", of_chunk)
    keys, labels = torch.tensor([[1.0, 0.0], [0.99, 0.14], [-1.0, 0.0]]), torch.tensor([0, 1, 2])
    queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
    sums = class_log_sums(queries, keys, chunks_of(labels), 3, 90.0)
    assert sums[0, 2] == -torch.inf
    (slope,) = torch.autograd.grad(log_probabilities(sums)[0, 0], queries)
    exact = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    expected = (90 * exact @ keys.double().T).log_softmax(1)[0, 0]
    # fp32 rounds exponents of 90 by 4e-6, and so each share of the slopes of 90.
    torch.testing.assert_close(slope.double(), torch.autograd.grad(expected, exact)[0], rtol=1e-4, atol=1e-3)


def test_equal_keys_share_alike():
    keys = torch.tensor([[1.0, 0.0]] * 6)
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    found = log_probabilities(class_log_sums(torch.tensor([[0.6, 0.8]]), keys, chunks_of(labels), 3, 77.0)).exp()
    torch.testing.assert_close(found, torch.tensor([[4 / 6, 1 / 6, 1 / 6]]))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_keys_of_16_bits_are_summed_in_32(kind):
    keys, labels, queries = problem(3000, 11, dimensions=64)
    expected = brute_force(queries, keys.to(kind), labels, 11, 90.0)
    found = log_probabilities(class_log_sums(queries, keys.to(kind), chunks_of(labels), 11, 90.0)).exp()
    torch.testing.assert_close(found.double(), expected, rtol=3e-5, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_autocast_changes_nothing(kind):
    """As where an attack on the whole cache model goes forward and backward within it."""
    keys, labels, queries = problem(3000, 11, dimensions=64)
    keys, chunks = keys.to(kind), chunks_of(labels)

    def answers():
        asking = queries.clone().requires_grad_(True)
        sums = class_log_sums(asking, keys, chunks, 11, 90.0)
        (slope,) = torch.autograd.grad(log_probabilities(sums)[:, 3].sum(), asking)
        return sums, slope, class_log_sums_at(queries, keys, chunks, 11, (10.0, 90.0))

    expected = answers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answers()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_several_thetas_at_once():
    keys, labels, queries = problem(500, 9)
    chunks = chunks_of(labels, 64)
    found = class_log_sums_at(queries, keys, chunks, 9, (10.0, 50.0, 90.0))
    for place, theta in enumerate((10.0, 50.0, 90.0)):
        torch.testing.assert_close(found[place], class_log_sums(queries, keys, chunks, 9, theta), rtol=1e-6, atol=1e-5)


def test_rows_by_class():
    labels = np.array([2, 0, 2, 1, 0])
    rows = class_order(labels)
    assert sorted(rows.tolist()) == list(range(5))
    placed = np.empty(5, int)
    placed[rows] = labels
    assert placed.tolist() == [0, 0, 1, 2, 2]
    assert rows.tolist() == [3, 0, 4, 2, 1]


def test_unsorted_labels_are_refused():
    with pytest.raises(Exception, match="must ascend"):
        chunks_of(torch.tensor([0, 2, 1]))


@pytest.fixture
def alone():
    """One rank of one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_one_rank_with_all_keys_answers_as_without_ranks(alone):
    """Class 3 has no keys, and so no gradient."""
    keys, labels, queries = problem(50, 3)
    labels = torch.where(labels == 2, 4, labels)
    found = []
    for sums in (class_log_sums, sharded_log_sums):
        asked = queries.clone().requires_grad_(True)
        answer = sums(asked, keys, chunks_of(labels), 5, 10.0)
        F.nll_loss(log_probabilities(answer), torch.arange(len(queries)) % 2 * 4, reduction="sum").backward()
        found.append((answer.detach(), asked.grad))
    assert (found[1][0][:, 2:4] == -torch.inf).all()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-5)
    assert found[0][1].abs().max() > 1


def test_two_ranks_answer_as_one():
    script = Path(__file__).parent / "sharded_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 agrees" in done.stderr
    assert "rank 1 agrees" in done.stderr
