"""Which thetas a search takes, and which it calls the best; its accuracies are tested with the cache model."""

import math
from types import SimpleNamespace

import pytest
import torch

from lit_robust.attacks import APGD, PGD
from lit_robust.callbacks import ThetaSearch
from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import named_facets


def test_of_equal_accuracies_the_smallest_theta_is_best():
    search = ThetaSearch(thetas=(50, 10.5, 90, 20), dataset="some")
    search.described = EvaluationSet("some", 10, {})
    search.trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda counts, reduce_op: counts))
    search.correct = torch.tensor([3, 8, 8, 2])
    *accuracies, best = search.compute()
    assert [(result.metric, result.value) for result in accuracies] == [
        ("top1_theta_10.5", 0.3),
        ("top1_theta_20", 0.8),
        ("top1_theta_50", 0.8),
        ("top1_theta_90", 0.2),
    ]
    assert all(r.facets == named_facets("some", r.metric, r.protocol) for r in (*accuracies, best))
    assert accuracies[0].facets["theta"] == 10.5
    assert (best.metric, best.value, best.unit) == ("best_theta_top1", 20.0, "theta")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0, -1])
def test_thetas_are_finite_and_above_zero(wrong):
    # Wherever the nan stands, as comparisons with it are all false.
    for thetas in ([wrong, 10], [10, wrong], [wrong]):
        with pytest.raises(UserError, match=r"The thetas are \[.*\]: give at least one, each finite and above 0"):
            ThetaSearch(thetas=thetas)


def test_thetas_give_results_of_different_names():
    with pytest.raises(UserError, match="two are the same to six digits.*: give each once"):
        ThetaSearch(thetas=(10.0000001, 10.0000002))
    with pytest.raises(UserError, match="give at least one"):
        ThetaSearch(thetas=())


@pytest.mark.parametrize("attack", [PGD(keep="first"), APGD()])
def test_attacks_that_end_where_the_backbone_errs_are_refused(attack):
    with pytest.raises(UserError, match="In a gray-box attack .* would end where the network it sees errs"):
        ThetaSearch(attack)
    assert ThetaSearch(PGD(keep="last")).stem == "gray_box_top1"
