"""Clusters and principal components against scikit-learn, and the price of queries that are not centred."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from memories import clustered, manifest_of, write_memory
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, IncrementalPCA
from torch.nn import functional as F

from lit_robust.core.errors import DataError, UserError
from lit_robust.memory import chunks_of, class_log_sums, cluster, open_memory, project
from lit_robust.memory.build import begin_memory, part_folder
from lit_robust.memory.compression import principal_components, read_projection
from lit_robust.memory.store import PROJECTION


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_components_are_scikit_learns(pieces, dimensions):
    vectors, _ = clustered(offset=3.0)
    ours = principal_components(iter(np.array_split(vectors, pieces)), dimensions)
    theirs = PCA(dimensions, svd_solver="full").fit(vectors)
    signs = np.sign((ours.components.numpy() * theirs.components_).sum(1, keepdims=True))
    # Both compute in float64; ours are stored in float32.
    np.testing.assert_allclose(ours.components.numpy() * signs, theirs.components_, atol=1e-5)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-5, atol=1e-6)
    # scikit-learn divides by the count less one.
    np.testing.assert_allclose(ours.variances * 300 / 299, theirs.explained_variance_, rtol=1e-8)
    assert ours.explained == pytest.approx(theirs.explained_variance_ratio_.sum())


def test_the_incremental_decomposition_of_the_papers_code_is_near():
    vectors, _ = clustered(count=1000)
    ours = principal_components(iter([vectors]), 4)
    theirs = IncrementalPCA(4, batch_size=100).fit(vectors)
    # It is an approximation: the planes agree to a degree or so.
    overlap = np.linalg.svd(ours.components.numpy() @ theirs.components_.T, compute_uv=False)
    assert overlap.min() > 0.99


def test_too_many_components():
    with pytest.raises(UserError, match="13 principal components of 12: ask for at most 12"):
        principal_components(iter([clustered()[0]]), 13)
    with pytest.raises(UserError, match="1 principal components of 0: ask for at most 0"):
        principal_components(iter([]), 1)
    with pytest.raises(UserError, match="at most 3"):
        principal_components(iter([clustered(count=3)[0]]), 4)


def accuracy(memory, queries, labels):
    keys, rows = memory.tensors()
    found = class_log_sums(F.normalize(queries), keys, chunks_of(rows), memory.manifest.num_classes, 50.0)
    return float((found.argmax(1).numpy() == labels).mean())


def projected_queries(memory, queries):
    mean, components = read_projection(memory)
    centred = memory.manifest.compression[-1]["centring"] == "both"
    return (queries - mean if centred else queries) @ components.T


def test_queries_that_are_not_centred_cost_accuracy(tmp_path):
    """Orhan and Lake's code centres the keys alone; that costs accuracy where features vary along their mean."""
    vectors, labels = clustered(count=1500, dimensions=30, num_classes=40)
    shared = np.random.default_rng(7).normal(10.0, 3.0, size=(1500, 1))
    vectors = vectors + shared * np.ones(30) / np.sqrt(30)
    memory = write_memory(tmp_path / "m", vectors[:1000], labels[:1000], num_classes=40)
    queries = torch.from_numpy(vectors[1000:]).float()
    found = {}
    for centring in ("both", "keys"):
        project(memory, tmp_path / centring, 8, "raw", centring)
        smaller = open_memory(tmp_path / centring)
        assert smaller.manifest.dimensions == 8
        found[centring] = accuracy(smaller, projected_queries(smaller, queries), labels[1000:])
    assert found["both"] > 0.95
    assert found["keys"] < found["both"] - 0.2


def test_projected_keys(tmp_path):
    vectors, labels = clustered()
    memory = write_memory(tmp_path / "m", vectors, labels)
    for on in ("unit", "raw"):
        project(memory, tmp_path / on, 3, on, "both")
        made = open_memory(tmp_path / on)
        given = vectors[np.argsort(labels, kind="stable")]
        given = given / np.linalg.norm(given, axis=1, keepdims=True) if on == "unit" else given
        theirs = PCA(3, svd_solver="full").fit_transform(given)
        theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
        np.testing.assert_allclose(np.abs(made.keys), np.abs(theirs), atol=2e-4)
        np.testing.assert_array_equal(made.labels, memory.labels)
        assert made.manifest.compression[-1]["explained_variance"] < 1


@pytest.mark.parametrize("on", ["unit", "raw"])
def test_clusters(tmp_path, on):
    vectors, labels = clustered(count=400)
    memory = write_memory(tmp_path / "m", vectors, labels)
    cluster(memory, tmp_path / "c", 4, on, seed=3)
    made = open_memory(tmp_path / "c")
    sizes = np.bincount(labels, minlength=5)
    # As eminorhan/robust-vision has it.
    np.testing.assert_array_equal(np.bincount(made.labels, minlength=5), sizes // 4 + 1)
    np.testing.assert_allclose(np.linalg.norm(made.keys, axis=1), 1, atol=1e-5)
    # A class's centres lie within a few per cent of where scikit-learn's full k-means puts its own.
    for number in range(5):
        own = memory.labels == number
        given = memory.raw(slice(None))[own] if on == "raw" else np.array(memory.keys[own])
        centres = (made.keys * made.norms[:, None])[made.labels == number]
        spread = ((given[:, None] - centres) ** 2).sum(2).min(1).sum()
        best = KMeans(len(centres), n_init=3, random_state=0).fit(given).inertia_
        assert spread < 1.35 * best


def test_clusters_follow_from_the_seed_alone(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered(count=200))
    made = [cluster(memory, tmp_path / f"{n}", 4, "raw", seed).keys_sha256 for n, seed in enumerate((1, 1, 2))]
    assert made[0] == made[1] != made[2]


def test_a_class_of_one_key_keeps_it(tmp_path):
    memory = write_memory(tmp_path / "m", np.eye(4)[[0, 1, 1, 1]], np.array([0, 2, 2, 2]))
    cluster(memory, tmp_path / "c", 2, "unit", 0)
    assert open_memory(tmp_path / "c").labels.tolist() == [0, 2, 2]


def test_what_cannot_be_made_smaller(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    with pytest.raises(UserError, match="factor of clustering is 1"):
        cluster(memory, tmp_path / "c", 1, "raw", 0)
    cluster(memory, tmp_path / "c", 2, "raw", 0)
    with pytest.raises(UserError, match="There is a .*c already"):
        cluster(memory, tmp_path / "c", 2, "raw", 0)
    with pytest.raises(UserError, match="made smaller already"):
        cluster(open_memory(tmp_path / "c"), tmp_path / "cc", 2, "raw", 0)
    with pytest.raises(UserError, match="holds centres"):
        project(open_memory(tmp_path / "c"), tmp_path / "p", 2, "raw", "both")
    project(open_memory(tmp_path / "c"), tmp_path / "p", 2, "unit", "both")
    with pytest.raises(UserError, match="was projected already"):
        project(open_memory(tmp_path / "p"), tmp_path / "pp", 2, "unit", "both")


def another(file):
    tensors = load_file(file)
    save_file({"mean": tensors["mean"], "components": tensors["components"].flip(0).contiguous()}, str(file))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (another, "has changed"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "has changed"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
def test_another_projection_is_found_out(tmp_path, damage, says):
    project(write_memory(tmp_path / "m", *clustered()), tmp_path / "p", 3, "raw", "both")
    damage(tmp_path / "p" / PROJECTION)
    with pytest.raises(DataError, match=f"{PROJECTION} {says}"):
        open_memory(tmp_path / "p")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"mean": torch.zeros(12)}, "cannot be read"),
        ({"mean": torch.zeros(12), "components": torch.zeros(4, 12)}, "do not give keys of 3 dimensions"),
        ({"mean": torch.zeros(11), "components": torch.zeros(3, 12)}, "do not give keys of 3 dimensions"),
        ({"mean": torch.zeros(1, 12), "components": torch.zeros(3, 12)}, "do not give keys of 3 dimensions"),
        ({"mean": torch.zeros(12).double(), "components": torch.zeros(3, 12)}, "in fp32"),
        ({"mean": torch.full((12,), torch.nan), "components": torch.zeros(3, 12)}, "are not finite"),
        ({"mean": torch.zeros(12), "components": torch.full((3, 12), torch.inf)}, "are not finite"),
    ],
)
def test_a_projection_of_other_keys_is_refused(tmp_path, tensors, says):
    project(write_memory(tmp_path / "m", *clustered()), tmp_path / "p", 3, "raw", "both")
    memory = open_memory(tmp_path / "p")
    save_file(tensors, str(memory.folder / PROJECTION))
    with pytest.raises(DataError, match=f"{PROJECTION} .*{says}.*: copy the whole memory, or project it again"):
        read_projection(memory)


def test_words_that_do_not_exist_are_refused(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    with pytest.raises(UserError, match="on is 'row', did you mean raw"):
        cluster(memory, tmp_path / "c", 2, "row", 0)
    with pytest.raises(UserError, match="on is 'row', did you mean raw"):
        project(memory, tmp_path / "c", 2, "row", "both")
    with pytest.raises(UserError, match="centring is 'none': choose one of both, keys"):
        project(memory, tmp_path / "c", 2, "raw", "none")


def test_neither_a_fit_nor_a_memory_is_written_over(tmp_path):
    vectors, labels = clustered()
    memory = write_memory(tmp_path / "m", vectors, labels)
    begin_memory(tmp_path / "bb", memory.manifest.unfinished(), labels)
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part" / "thesis.txt").write_text("long")
    for name, says in (("bb", "another run began"), ("mine", "not part of one"), ("m/inner", "inside the memory")):
        with pytest.raises(UserError, match=says):
            cluster(memory, tmp_path / name, 2, "raw", 0)
        with pytest.raises(UserError, match=says):
            project(memory, tmp_path / name, 2, "raw", "both")
    assert (tmp_path / "bb.part" / "keys.npy").is_file()
    assert (tmp_path / "mine.part" / "thesis.txt").read_text() == "long"
    assert not (tmp_path / "m" / "inner").exists()


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    memory = write_memory(tmp_path / "m", *clustered())
    monkeypatch.setattr("lit_robust.memory.compression.unit_length", lambda vectors: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cluster(memory, tmp_path / "c", 2, "raw", 0)
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_an_unfinished_part_of_a_smaller_memory(tmp_path):
    labels = clustered()[1]
    manifest = replace(manifest_of(300, 12), compression=({"kind": "k-means"},))
    begin_memory(tmp_path / "c", manifest, labels)
    with pytest.raises(UserError, match="remove it, and run the `lit-robust memory cluster` that makes it again"):
        open_memory(part_folder(tmp_path / "c"))
