"""Nearest neighbours against NumPy; Faiss's indexes: built, opened, compared with the exact ones, refused."""

import resource

import numpy as np
import pytest
import torch
from memories import clustered, write_memory
from torch.nn import functional as F

from lit_robust.core.errors import DataError, UserError
from lit_robust.memory import log_probabilities, nearest_keys, neighbour_log_sums
from lit_robust.memory import nearest as room
from lit_robust.memory.nearest import build_index, check_indexes, exact_search, open_index, recall


def by_numpy(queries, keys, k):
    """A stable sort of all similarities, so that of equal ones the lower row comes first."""
    products = (queries @ keys.T).numpy()
    return np.argsort(-products, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("piece", [7, 64, 16384])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (1, 50), (49, 50), (50, 50), (51, 50), (1000, 50), (1000, 1)])
def test_neighbours(monkeypatch, count, k, piece):
    monkeypatch.setattr(room, "COMPARED", piece)
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


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    vectors, labels = clustered(count=2000, dimensions=16)
    return write_memory(tmp_path_factory.mktemp("index") / "m", vectors, labels)


@pytest.fixture(scope="module")
def queries():
    return F.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("factory", "settings", "least"),
    [
        ("Flat", "", 1.0),
        ("IVF8,Flat", "nprobe=8", 1.0),
        ("IVF8,Flat", "nprobe=1", 0.2),
        ("HNSW16", "efSearch=200", 0.9),
        ("IVF4,PQ8x4", "nprobe=4", 0.3),
    ],
)
def test_recall(memory, queries, factory, settings, least):
    build_index(memory, factory, seed=0)
    found = open_index(memory, factory, settings, CPU)(queries, 50)
    exact = exact_search(memory.tensors()[0])(queries, 50)
    share = float(recall(found, exact).mean())
    assert share >= least
    if least < 1:
        assert share < 1 or factory.startswith("HNSW")


def test_recall_counts_what_was_found():
    found, exact = torch.tensor([[3, 1, -1], [7, 8, 9]]), torch.tensor([[1, 2, 3], [9, 8, 7]])
    assert recall(found, exact).tolist() == [2 / 3, 1.0]


def test_a_copy_on_a_gpu_is_told_of_settings_as_gpus_are(memory, queries, monkeypatch):
    import faiss

    told = []

    class Parameters(faiss.GpuParameterSpace):
        def set_index_parameters(self, index, settings):
            told.append(settings)
            super().set_index_parameters(index, settings)

    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda resources, place, index: index, raising=False)
    monkeypatch.setattr(faiss, "GpuParameterSpace", Parameters)
    build_index(memory, "IVF8,Flat", seed=0)
    found = open_index(memory, "IVF8,Flat", "nprobe=8", torch.device("cuda", 0))(queries, 50)
    assert told == ["nprobe=8"]
    assert float(recall(found, exact_search(memory.tensors()[0])(queries, 50)).mean()) == 1


def test_an_index_that_no_gpu_knows_stays_on_the_processor(memory, queries, monkeypatch, caplog):
    import faiss

    def refuses(resources, place, index):
        raise RuntimeError("Error in clone at gpu/GpuCloner.cpp:1: This index type is not implemented on GPU.")

    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", refuses, raising=False)
    build_index(memory, "HNSW16", seed=0)
    found = open_index(memory, "HNSW16", "efSearch=200", torch.device("cuda", 0))(queries, 50)
    assert float(recall(found, exact_search(memory.tensors()[0])(queries, 50)).mean()) > 0.9
    assert "HNSW16 is searched on the processor: This index type is not implemented on GPU.\n" in caplog.text


def test_faiss_and_ours_agree(memory, queries):
    import faiss

    index = faiss.IndexFlatIP(16)
    index.add(np.array(memory.keys))
    values, rows = index.search(queries.numpy(), 50)
    ours, own = nearest_keys(queries, memory.tensors()[0], 50)
    np.testing.assert_allclose(ours, values, atol=1e-5)
    # Neighbours that are equal to rounding may change places.
    assert (own.numpy() == rows).mean() > 0.99


def test_what_does_not_fit(memory, tmp_path):
    with pytest.raises(UserError, match="cannot build the index 'Nonsense7'"):
        build_index(memory, "Nonsense7", 0)
    with pytest.raises(UserError, match="has no index 'HNSW48': build it with `lit-robust memory index"):
        open_index(memory, "HNSW48", "", CPU)
    build_index(memory, "Flat", 0)
    with pytest.raises(UserError, match="'Flat' cannot be searched with 'nonsense=3'"):
        open_index(memory, "Flat", "nonsense=3", CPU)


def test_indexes_of_other_keys_or_changed(tmp_path):
    first = write_memory(tmp_path / "a", *clustered(seed=1))
    second = write_memory(tmp_path / "b", *clustered(seed=2))
    file = build_index(first, "Flat", 0)
    for name in (file.name, file.with_suffix(".json").name):
        (second.folder / name).write_bytes((first.folder / name).read_bytes())
    with pytest.raises(DataError, match="is of other keys than the memory's"):
        open_index(second, "Flat", "", CPU)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="has changed since it was built"):
        open_index(first, "Flat", "", CPU)


@pytest.mark.parametrize("settings", ["nprobe=0", "nprobe=-1"])
def test_settings_that_only_a_search_finds_wrong(memory, settings):
    build_index(memory, "IVF8,Flat", 0)
    with pytest.raises(UserError, match=f"'IVF8,Flat' cannot be searched with '{settings}'"):
        open_index(memory, "IVF8,Flat", settings, CPU)


@pytest.mark.parametrize("alike", ["ivf8,flat", "IVF8-Flat", "IVF8/Flat"])
def test_an_index_is_found_by_its_own_description_alone(memory, alike):
    build_index(memory, "IVF8,Flat", 0)
    with pytest.raises(UserError, match=f"has no index '{alike}'"):
        open_index(memory, alike, "", CPU)


@pytest.mark.parametrize("factory", ["LSH", "Nonsense7", "IVF4096,Flat", "PQ7", "IDMap,Flat"])
def test_reasons_of_faiss_are_without_its_source(memory, factory):
    with pytest.raises(UserError, match="cannot build the index") as caught:
        build_index(memory, factory, 0)
    said = str(caught.value)
    assert not {word for word in ("faiss::", ".cpp", "Error in") if word in said}
    assert "()" not in said


def test_a_disk_without_room_for_an_index(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered(count=2000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(UserError, match=r"Faiss cannot write .*index-flat.faiss .*free some space"):
            build_index(memory, "Flat", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(memory.folder.glob("*index*"))


def test_all_indexes_are_looked_at(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    assert check_indexes(memory) == []
    file = build_index(memory, "Flat", 0)
    build_index(memory, "HNSW4", 0)
    assert check_indexes(memory) == ["Flat", "HNSW4"]
    content = file.read_bytes()
    for damage in (content[:-1] + bytes([content[-1] ^ 1]), content[:-5]):
        file.write_bytes(damage)
        with pytest.raises(DataError, match="is missing or has changed"):
            check_indexes(memory)
    file.write_bytes(content)
    file.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="index-flat.json cannot be read"):
        check_indexes(memory)
