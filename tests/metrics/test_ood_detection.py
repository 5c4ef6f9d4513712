import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from lit_robust.core.errors import DataError
from lit_robust.metrics import OodDetection, among_classes, ood_score
from lit_robust.metrics.ood_detection import thinned_curve
from lit_robust.reference import imagenet_subset


def logits(count, num_classes, seed=0):
    return 3 * torch.randn(count, num_classes, generator=torch.Generator().manual_seed(seed))


def test_scores_are_the_definitions_over_the_chosen_classes():
    classes = imagenet_subset("imagenet-o")
    raw = logits(40, 1000)
    chosen, exact = among_classes(raw, classes), raw.double().numpy()[:, list(classes)]
    # fp32 against float64; energies and logits are about 10.
    np.testing.assert_allclose(ood_score(chosen, "max_softmax"), 1 - softmax(exact, 1).max(1), rtol=1e-5)
    np.testing.assert_allclose(ood_score(chosen, "max_logit"), -exact.max(1), rtol=1e-6)
    np.testing.assert_allclose(ood_score(chosen, "energy"), -logsumexp(exact, 1), rtol=1e-6)


def test_very_confident_answers_do_not_tie():
    sure = torch.tensor([[20.0, 0.0], [30.0, 0.0], [40.0, 0.0]])
    assert (sure.softmax(1)[:, 0] == 1).all()
    assert (ood_score(sure, "max_softmax").diff() < 0).all()


def test_metric_agrees_with_scikit_learn_in_any_batches():
    raw, strange = logits(300, 20), torch.arange(300) % 6 == 0
    scores = ood_score(raw, "max_softmax")
    metric = OodDetection()
    for part in torch.arange(300).split(77):
        metric.update(scores[part], strange[part])
    metric.update(scores[:0], strange[:0])
    computed = metric.compute()
    expected = -softmax(raw.double().numpy(), 1).max(1)
    assert float(computed["aupr"]) == pytest.approx(average_precision_score(strange, expected), abs=1e-12)
    assert float(computed["auroc"]) == pytest.approx(roc_auc_score(strange, expected), abs=1e-12)
    assert (int(computed["positives"]), int(computed["negatives"])) == (50, 250)
    assert computed["curve"][-1, 0] == 1


def test_nothing_kept_is_undefined():
    metric = OodDetection()
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    computed = metric.compute()
    for each in (computed, OodDetection().compute()):
        assert all(each[name].isnan() for name in ("aupr", "auroc", "fpr95"))
        assert each["curve"].shape == (0, 2)
        assert (each["positives"], each["negatives"]) == (0, 0)


def test_the_drawn_curve_is_a_part_of_the_whole():
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    positive = torch.arange(5000) % 5 == 0
    curve = thinned_curve(scores, positive, points=11)
    assert len(curve) == 11
    best = scores[positive].sort(descending=True)[0]
    for recall, precision in curve[1:].tolist():
        taken = scores >= best[round(recall * 1000) - 1]
        assert positive[taken].double().mean() == pytest.approx(precision, abs=1e-12)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_scores_without_a_rank_are_refused(score):
    metric = OodDetection()
    with pytest.raises(DataError, match=f"score of image 2 of a batch is {score}"):
        metric.update(torch.tensor([0.2, 0.3, score]), torch.tensor([False, False, True]))
    assert not metric.scores


def test_the_false_positive_rate_is_that_at_a_recall_of_95_in_100():
    # Each of 20 positives has a negative right below it. Of the two thresholds at 0.95 the lower one counts.
    positives = torch.arange(20, 0, -1).double()
    metric = OodDetection()
    metric.update(torch.cat([positives + 0.5, positives]), torch.arange(40) < 20)
    assert float(metric.compute()["fpr95"]) == 19 / 20


def test_the_drawn_curve_ends_at_a_recall_of_one():
    scores, positive = torch.arange(1000.0), torch.arange(1000) % 3 == 0
    curve = thinned_curve(scores, positive, 11)
    assert curve.dtype == torch.float64
    assert curve[0].tolist() == [1 / 334, 1.0]  # the highest of the 334 positives stands above all negatives
    assert curve[-1].tolist() == [1.0, 334 / 1000]
    for empty in (thinned_curve(torch.zeros(0), torch.zeros(0).bool()), thinned_curve(scores, positive & False)):
        assert (empty.shape, empty.dtype) == ((0, 2), torch.float64)
