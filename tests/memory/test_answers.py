"""A cache model's answers against the formulas in float64, from images to log-probabilities."""

import re

import numpy as np
import pytest
import torch
from memories import write_memory
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.memory import open_memory
from lit_robust.memory.classifier import CacheClassifier, ContinuousLayer, NearestLayer, Retrieval
from lit_robust.memory.compression import project, read_projection
from lit_robust.memory.nearest import build_index, exact_search, recall, version_of_faiss
from lit_robust.models import Network, build_classifier

CPU = torch.device("cpu")
CLASSES = 5


@pytest.fixture(scope="module")
def cache():
    torch.manual_seed(1)
    network = build_classifier(Network("lit_robust/resnet_tiny", num_classes=CLASSES))
    return CacheClassifier(network.eval(), "layers.2", "none")


@pytest.fixture(scope="module")
def images():
    return torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def memory(cache, images, tmp_path):
    """Of the images' own keys; no image is of class 3."""
    labels = np.random.default_rng(0).choice([0, 1, 2, 4], len(images))
    with torch.no_grad():
        return write_memory(tmp_path / "memory", cache.vectors(images).numpy(), labels)


def expected(memory, queries, theta, rows=None):
    """Return the probabilities of equation 2 of Orhan and Lake (2019), of all keys or of some rows ``[B, k]``."""
    keys, labels = (torch.from_numpy(np.array(one)) for one in (memory.keys, memory.labels))
    exponents = theta * F.normalize(queries.double()) @ keys.double().T
    if rows is not None:
        chosen = torch.zeros_like(exponents, dtype=torch.bool).scatter_(1, rows, True)
        exponents = exponents.masked_fill(~chosen, -torch.inf)
    return exponents.softmax(1) @ F.one_hot(labels.long(), CLASSES).double()


@pytest.mark.parametrize("retrieval", [Retrieval(theta=7.0), Retrieval("nearest", 7.0, 3)])
def test_answers_are_equation_2_s(cache, images, memory, retrieval):
    cache.open(memory, retrieval, CPU)
    images = images.flip(3)  # Other images than those of the memory.
    with torch.no_grad():
        vectors = cache.vectors(images)
        found = cache(images)
        at = cache.asked().at(cache.queries(images), [7.0, 30.0])
    rows = None
    if retrieval.kind == "nearest":
        rows = (F.normalize(vectors.double()) @ torch.from_numpy(np.array(memory.keys)).double().T).topk(3).indices
    for theta, answers in ((7.0, found), (7.0, at[0]), (30.0, at[1])):
        there = expected(memory, vectors, theta, rows)
        torch.testing.assert_close(answers.double().exp(), there, rtol=3e-5, atol=1e-9)
    assert (found[:, 3] == -10_000).all()


def test_without_a_memory_there_are_only_keys(cache, images):
    fresh = CacheClassifier(cache.backbone, "layers.2", "none")
    assert not fresh.is_sharded
    with pytest.raises(UserError, match="The cache model has no memory yet: build it with `lit-robust fit`, then test"):
        fresh(images[:1])
    with torch.no_grad():
        features = cache.backbone.features(images[:3], "layers.2")
        torch.testing.assert_close(fresh.queries(images[:3]), F.normalize(features.mean((2, 3))))


@pytest.mark.parametrize("on", ["unit", "raw"])
@pytest.mark.parametrize("centring", ["both", "keys"])
def test_queries_are_projected_as_the_keys_were_or_without_their_mean(cache, images, memory, tmp_path, on, centring):
    project(memory, tmp_path / "small", 4, on, centring)
    small = open_memory(tmp_path / "small")
    step = dict(small.manifest.compression[-1])
    assert 0 < step.pop("explained_variance") < 1
    assert step == {"kind": "components", "dimensions": 4, "on": on, "centring": centring}
    model = CacheClassifier(cache.backbone, "layers.2", "none")
    model.open(small, Retrieval(), CPU)
    with torch.no_grad():
        found, vectors = model.queries(images), cache.vectors(images).double()
    mean, components = (one.double() for one in read_projection(small))
    vectors = F.normalize(vectors) if on == "unit" else vectors
    wanted = F.normalize((vectors - mean if centring == "both" else vectors) @ components.T)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)
    # Of the images that the memory is of, centred queries are its keys, in whichever order.
    similarity = (found @ torch.from_numpy(np.array(small.keys)).T).amax(1)
    assert (similarity > 0.9999).all() == (centring == "both")


def test_an_approximate_search_says_what_it_found(memory, images, cache):
    with torch.no_grad():
        queries = cache.queries(images.flip(3))
    assert NearestLayer(memory, Retrieval("nearest", k=3), CPU).facts() == {}
    assert not NearestLayer(memory, Retrieval("nearest", k=3), CPU).wants_comparison
    build_index(memory, "IVF4,Flat", seed=0)
    layer = NearestLayer(memory, Retrieval("nearest", k=3, index="IVF4,Flat", search="nprobe=1"), CPU)
    told = {"index": "IVF4,Flat", "search_settings": "nprobe=1", "faiss": version_of_faiss()}
    assert layer.facts() == told
    assert layer.wants_comparison
    for part in (queries[:30], queries[30:]):
        layer.compare(part)
    share = float(recall(layer.neighbours(queries), exact_search(layer.keys)(queries, 3)).mean())
    assert 0.3 < share < 1
    assert layer.facts() == {
        **told,
        "recall": pytest.approx(share, abs=5.1e-5),
        "recall_queries": 40,
        "recall_of": "the first that rank 0 asked, of whichever set",
    }
    own = NearestLayer(memory, Retrieval("nearest", k=3, index="IVF4,Flat"), CPU)
    assert own.facts()["search_settings"] == "Faiss's own"


@pytest.mark.parametrize("precision", ["stored", "float16", "bfloat16"])
def test_keys_in_use_have_the_precision_that_is_asked_for(memory, precision):
    layer = ContinuousLayer(memory, Retrieval(precision=precision), CPU)
    assert layer.keys.dtype == {"stored": torch.float32}.get(precision, getattr(torch, precision, None))
    assert layer.num_classes == CLASSES
    assert not layer.is_sharded


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "all"}, "retrieval.kind"),
        ({"precision": "int8"}, "retrieval.precision"),
        ({"theta": 0.0}, "retrieval.theta is 0.0: give a number above 0, such as 50."),
        ({"theta": float("inf")}, "retrieval.theta is inf: give a number above 0"),
        ({"theta": float("nan")}, "retrieval.theta is nan: give a number above 0"),
        ({"k": 0}, "retrieval.k is 0: give 1 or more neighbours."),
        ({"index": "Flat"}, "retrieval.index 'Flat' finds neighbours, and kind continuous asks all keys"),
        ({"search": "nprobe=1"}, "finds neighbours, and kind continuous asks all keys"),
        ({"kind": "nearest", "search": "nprobe=1"}, "retrieval.search 'nprobe=1' is the setting of an index"),
        ({"kind": "nearest", "sharded": True}, "retrieval.sharded spreads the keys of kind continuous"),
    ],
)
def test_settings_that_do_not_fit_each_other(settings, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        Retrieval(**settings)


def test_settings_that_do():
    Retrieval(k=1, theta=1e-3)
    Retrieval("nearest", index="Flat", search="")
    Retrieval("nearest", index="IVF4,Flat", search="nprobe=1")
    Retrieval("continuous", sharded=True)


def test_more_neighbours_than_keys(memory):
    NearestLayer(memory, Retrieval("nearest", k=40), CPU)
    with pytest.raises(UserError, match=r"retrieval.k is 41, but .*memory has 40 keys: give 40 or less"):
        NearestLayer(memory, Retrieval("nearest", k=41), CPU)
