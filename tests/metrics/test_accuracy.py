import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from lit_robust.core.errors import UserError
from lit_robust.metrics import RobustAccuracy, TopKAccuracy, topk_correct


@pytest.mark.parametrize("num_classes", [3, 10, 1000])
def test_agrees_with_torchmetrics(num_classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, num_classes, generator=generator)
    labels = torch.randint(num_classes, (200,), generator=generator)
    metric = TopKAccuracy((1, 3))
    for part in range(0, 200, 64):
        metric.update(logits[part : part + 64], labels[part : part + 64])
    for k, value in zip((1, 3), metric.compute(), strict=True):
        peer = MulticlassAccuracy(num_classes, average="micro", top_k=k)(logits, labels)
        assert value == pytest.approx(float(peer), abs=1e-7)


def test_top1_is_argmax_also_with_ties():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    assert logits.argmax(1).tolist() == [0, 1]
    assert topk_correct(logits, torch.tensor([0, 1]), (1,)).tolist() == [2]
    assert topk_correct(logits, torch.tensor([1, 2]), (1, 2)).tolist() == [0, 2]


def test_nan_never_helps():
    logits = torch.tensor([[float("nan"), 0.0], [0.0, float("nan")]])
    assert topk_correct(logits, torch.tensor([0, 0]), (1,)).tolist() == [0]
    metric = TopKAccuracy((1,))
    metric.update(torch.cat([logits, torch.eye(2)]), torch.tensor([0, 0, 0, 1]))
    with pytest.warns(UserWarning, match="answers to 2 of 4 images hold logits that are not numbers"):
        assert metric.compute() == 0.5


def test_one_and_five_answers_are_counted_by_default():
    metric = TopKAccuracy()
    metric.update(torch.arange(7.0).expand(7, 7), torch.arange(7))
    assert metric.compute().tolist() == [1 / 7, 5 / 7]


def test_empty_batches_count_nothing():
    metric = TopKAccuracy((1,))
    metric.update(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert metric.compute().isnan()
    metric.update(torch.eye(4), torch.arange(4))
    assert metric.compute() == 1.0


@pytest.mark.parametrize("top_k", [(0,), (1, -5), ()])
def test_no_answers_at_all_are_refused(top_k):
    with pytest.raises(UserError, match="name numbers of answers, each at least 1"):
        TopKAccuracy(top_k)


def test_survivors_of_each_strength_are_counted_over_batches():
    metric = RobustAccuracy(2)
    metric.update([[True, True, False], [True, False, False]])
    metric.update([[True, False], [False, False]])
    assert metric.compute().tolist() == [3 / 5, 1 / 5]
    assert (metric.survivors.tolist(), int(metric.total)) == ([3, 1], 5)
    single = RobustAccuracy()
    single.update([[True, False, False, False]])
    assert float(single.compute()) == 0.25
