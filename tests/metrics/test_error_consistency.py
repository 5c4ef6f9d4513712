import csv

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from lit_robust.metrics import ErrorConsistency, error_consistency


def test_kappa_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(300, generator=generator) < 0.7
    others = torch.rand(3, 300, generator=generator) < torch.tensor([[0.2], [0.6], [0.9]])
    others[1, :200] = own[:200]
    metric = ErrorConsistency(3)
    for part in torch.arange(300).split(90):
        metric.update(own[part], others[:, part].long())
    computed = metric.compute()
    for observed, kappa in zip(others, computed["error_consistency"], strict=True):
        assert float(kappa) == pytest.approx(cohen_kappa_score(own, observed), abs=1e-12)
    assert computed["counts"].sum((1, 2)).tolist() == [300] * 3


def test_images_an_observer_did_not_see_do_not_count():
    metric = ErrorConsistency(2)
    metric.update(torch.tensor([True, False, True]), torch.tensor([[1, 0, -1], [-1, -1, -1]]))
    computed = metric.compute()
    assert float(computed["error_consistency"][0]) == 1
    assert computed["error_consistency"][1].isnan()
    assert computed["counts"].sum((1, 2)).tolist() == [2, 0]


def test_opposite_and_undefined():
    assert float(error_consistency(torch.tensor([[0, 50], [50, 0]]))) == -1
    assert error_consistency(torch.tensor([[0, 0], [0, 9]])).isnan()


def test_published_decisions_of_two_networks(real):
    rows = list(csv.DictReader((real / "cue-conflict-decisions.csv").open()))
    right = {}
    for row in rows:
        right.setdefault(row["model"], {})[row["image"]] = row["decision"] == row["shape_category"]
    first, second = list(right)[:2]
    images = sorted(right[first].keys() & right[second].keys())
    assert len(images) > 100
    a, b = ([right[name][image] for image in images] for name in (first, second))
    metric = ErrorConsistency(1)
    metric.update(torch.tensor(a), torch.tensor([b]).long())
    assert float(metric.compute()["error_consistency"]) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
