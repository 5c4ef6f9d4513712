"""Nearest neighbours against NumPy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lit_robust.memory import log_probabilities, neighbour_log_sums
from lit_robust.memory import neighbours as room
from lit_robust.memory.neighbours import nearest_keys


def by_numpy(queries, keys, k):
    """A stable sort of all similarities, so that of equal ones the lower row comes first."""
    products = (queries @ keys.T).numpy()
    return np.argsort(-products, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("piece", [7, 64, 16384])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (1, 50), (49, 50), (50, 50), (51, 50), (1000, 50), (1000, 1)])
def test_neighbours(monkeypatch, count, k, piece):
    monkeypatch.setattr(room, "KEYS", piece)
    generator = torch.Generator().manual_seed(count)
    # Small whole numbers: exact products, and many ties.
    keys = torch.randint(-2, 3, (count, 6), generator=generator).float()
    queries = torch.randint(-2, 3, (20, 6), generator=generator).float()
    values, rows = nearest_keys(queries, keys, k)
    expected = by_numpy(queries, keys, k)
    np.testing.assert_array_equal(rows.numpy(), expected)
    torch.testing.assert_close(values, (queries @ keys.T).gather(1, rows), rtol=0, atol=0)


def test_all_equal():
    rows = nearest_keys(torch.ones(3, 2), torch.ones(100, 2), 5)[1]
    assert rows.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_no_queries():
    values, rows = nearest_keys(torch.empty(0, 4), torch.ones(9, 4), 5)
    assert values.shape == rows.shape == (0, 5)


@pytest.mark.parametrize("theta", [1.0, 50.0, 100.0])
def test_probabilities_and_gradients(theta):
    generator = torch.Generator().manual_seed(1)
    keys = F.normalize(torch.randn(200, 8, generator=generator))
    labels = torch.randint(6, (200,), generator=generator).sort().values
    queries = F.normalize(torch.randn(5, 8, generator=generator))
    rows = nearest_keys(queries, keys, 30)[1]
    exact = queries.double().requires_grad_(True)
    weights = (theta * torch.einsum("bd,bkd->bk", exact, keys[rows].double())).softmax(1)
    expected = torch.einsum("bk,bkc->bc", weights, F.one_hot(labels[rows], 6).double())
    ours = queries.clone().requires_grad_(True)
    found = log_probabilities(neighbour_log_sums(ours, keys, labels, rows, 6, theta))
    torch.testing.assert_close(found.exp().double(), expected, rtol=3e-5, atol=1e-30)
    target = labels[rows[:, 0]]
    F.nll_loss(expected.log(), target).backward()
    F.nll_loss(found, target).backward()
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-4 * float(exact.grad.abs().max()))


@pytest.mark.parametrize("theta", [60.0, 90.0, 100.0])
def test_a_class_far_less_likely_keeps_its_probability_and_gradient(theta):
    """Keys on opposite sides: exponents up to 200 apart, where fp32 holds e^88."""
    keys = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [-0.6, -0.8]])
    labels, rows = torch.tensor([0, 0, 1, 2]), torch.tensor([[0, 1, 2, 3]])
    queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
    exact = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    exponents = theta * exact @ keys.double().T
    expected = torch.stack([exponents[:, labels == c].logsumexp(1) for c in range(3)], 1).log_softmax(1)
    found = log_probabilities(neighbour_log_sums(queries, keys, labels, rows, 3, theta))
    # fp32 keeps 7 digits of exponents up to 200.
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-4)
    for place in range(3):
        (slope,) = torch.autograd.grad(found[0, place], queries, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected[0, place], exact, retain_graph=True)
        torch.testing.assert_close(slope.double(), wanted, rtol=1e-5, atol=1e-4)


def test_autocast_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(500, 24, generator=generator))
    labels, queries = torch.randint(7, (500,), generator=generator), torch.randn(5, 24, generator=generator)

    def answers():
        asking = F.normalize(queries).requires_grad_(True)
        products, rows = nearest_keys(asking, keys, 50)
        sums = neighbour_log_sums(asking, keys, labels, rows, 7, 50.0)
        (slope,) = torch.autograd.grad(log_probabilities(sums)[:, 3].sum(), asking)
        return products, rows, sums, slope

    expected = answers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answers()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_rows_that_were_not_found_do_not_count():
    keys, labels = torch.eye(3), torch.tensor([0, 1, 2])
    rows = torch.tensor([[1, -1, -1]])
    found = log_probabilities(neighbour_log_sums(torch.eye(3)[:1], keys, labels, rows, 3, 10.0)).exp()
    assert found.tolist() == [[0.0, 1.0, 0.0]]
