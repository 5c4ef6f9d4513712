import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_robust.core.errors import DataError
from lit_robust.metrics import ShapeBias, category_probabilities, shape_bias
from lit_robust.metrics.shape_bias import decision_counts
from lit_robust.reference import imagenet_categories

REAL = Path(__file__).parents[3] / "shared" / "real"


@pytest.mark.parametrize("aggregation", ["mean", "max", "sum"])
def test_category_probabilities_by_brute_force(aggregation):
    categories = {"a": (0, 3), "b": (1,), "c": (2, 4, 5)}
    logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    exponentials = np.exp(logits.double().numpy())
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    aggregate = {"mean": np.mean, "max": np.max, "sum": np.sum}[aggregation]
    expected = np.stack([aggregate(probabilities[:, list(c)], axis=1) for c in categories.values()], 1)
    # fp32 softmax against float64.
    np.testing.assert_allclose(category_probabilities(logits, categories, aggregation).numpy(), expected, rtol=1e-5)


def test_mean_and_sum_decide_differently():
    # Mass spread over a large category wins by sum, one sure class wins by mean.
    categories = {"large": (0, 1, 2), "small": (3,)}
    logits = torch.tensor([[0.25, 0.25, 0.2, 0.3]]).log()
    assert int(category_probabilities(logits, categories, "mean").argmax()) == 1
    assert int(category_probabilities(logits, categories, "sum").argmax()) == 0


def test_metric_counts_by_hand():
    categories = {"x": (0,), "y": (1,), "z": (2,)}
    metric = ShapeBias(categories)
    decide = torch.eye(3) * 10
    # shape x, texture y: says x, y, z; then no conflict: x right, x wrong.
    metric.update(decide[[0, 1, 2]], torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]))
    metric.update(decide[[0, 2]], torch.tensor([0, 0]), torch.tensor([0, 0]))
    computed = metric.compute()
    assert computed["counts"].tolist() == [[1, 1, 1, 1, 2], [0] * 5, [0] * 5]
    assert float(computed["shape_bias"]) == 0.5


def test_undefined_without_shape_or_texture_decisions():
    assert math.isnan(float(shape_bias(torch.tensor(0), torch.tensor(0))))


@pytest.mark.skipif(not REAL.exists(), reason="needs the published decisions in shared/real")
def test_published_decisions_by_an_independent_count():
    rows = list(csv.DictReader((REAL / "cue-conflict-decisions.csv").open()))
    names = list(imagenet_categories())
    for network in {row["model"] for row in rows}:
        counted = {"shape": 0, "texture": 0, "other": 0}
        decisions, shapes, textures = [], [], []
        for row in (row for row in rows if row["model"] == network):
            stem = row["image"].removesuffix(".png")
            shape, texture = ("".join(c for c in part if c.isalpha()) for part in stem.split("-"))
            said = row["decision"]
            if shape != texture:
                counted["shape" if said == shape else "texture" if said == texture else "other"] += 1
            decisions.append(names.index(said) if said in names else len(names))
            shapes.append(names.index(shape))
            textures.append(names.index(texture))
        counts = decision_counts(*(torch.tensor(c) for c in (decisions, shapes, textures)), num_categories=16).sum(0)
        assert counts[:3].tolist() == list(counted.values())
        assert sum(counted.values()) == 408


@pytest.mark.parametrize(
    ("shape", "texture", "logit", "words"),
    [
        (0, 7, 0.0, "texture 7, where numbers go from 0 to 1"),
        (5, 0, 0.0, "shape 5, where numbers go from 0 to 1"),
        (-1, 0, 0.0, "shape -1, where"),
        (0, 1, math.nan, "answer to image 1 of a batch is not a number"),
    ],
)
def test_what_is_no_category_and_no_number_is_refused(shape, texture, logit, words):
    metric = ShapeBias({"a": (0,), "b": (1,)})
    logits = torch.tensor([[0.0, 1.0], [0.0, logit]])
    with pytest.raises(DataError, match=words):
        metric.update(logits, torch.tensor([1, shape]), torch.tensor([0, texture]))
    assert metric.counts.sum() == 0


def test_categories_of_another_network_are_refused():
    with pytest.raises(DataError, match="A category has class 7, but the network has 2 classes"):
        ShapeBias({"a": (0,), "b": (1, 7)}).decide(torch.eye(2))


def test_the_metric_decides_as_it_was_told_to_aggregate():
    # Category a has the highest single class, b the highest mean, c the highest sum.
    categories = {"a": (0, 1), "b": (2,), "c": (3, 4, 5)}
    logits = torch.tensor([[0.25, 0.01, 0.24, 0.17, 0.17, 0.16]]).log().repeat(2, 1)
    for aggregation, chosen in (("max", 0), ("mean", 1), ("sum", 2)):
        metric = ShapeBias(categories, aggregation)
        assert metric.decide(logits).tolist() == [chosen, chosen]
        metric.update(logits, [0, 1], [0, 2])
        # Columns: shape, texture and other on conflict images; right and all on the others.
        assert metric.compute()["counts"].tolist() == [
            [0, 0, 0, int(chosen == 0), 1],
            [int(chosen == 1), int(chosen == 2), int(chosen == 0), 0, 0],
            [0, 0, 0, 0, 0],
        ]
    with pytest.raises(DataError, match="A category has class 5, but the network has 5 classes"):
        category_probabilities(logits[:, :5], categories)
