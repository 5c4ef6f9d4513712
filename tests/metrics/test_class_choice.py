import pytest
import torch

from lit_robust.core.errors import DataError
from lit_robust.metrics import TopKAccuracy, among_classes
from lit_robust.reference import imagenet_subset


@pytest.mark.parametrize("subset", ["imagenet-a", "imagenet-o"])
def test_choosing_before_the_softmax_is_what_slicing_does(subset):
    classes = imagenet_subset(subset)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 1000, generator=generator)
    chosen = among_classes(logits, classes)
    sliced = logits[:, list(classes)]
    assert chosen.argmax(1).tolist() == [classes[place] for place in sliced.argmax(1)]
    # Sums of the same numbers among zeros, in fp32.
    torch.testing.assert_close(chosen.softmax(1)[:, list(classes)], sliced.softmax(1))
    assert among_classes(logits, ()) is logits


def test_accuracy_among_classes():
    logits = torch.tensor([[9.0, 1.0, 2.0, 0.0], [9.0, 3.0, 2.0, 0.0]])
    metric, whole = TopKAccuracy((1,), (1, 2)), TopKAccuracy((1,))
    for each in (metric, whole):
        each.update(logits, torch.tensor([2, 2]))
    assert (float(metric.compute()), float(whole.compute())) == (0.5, 0)


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(DataError, match=f"label {label}, which is none of the network's 4 classes"):
        TopKAccuracy((1,)).update(torch.eye(4), torch.tensor([0, 1, 2, label]))


def test_labels_and_classes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="label 0, which is none of the 2 classes of the set"):
        TopKAccuracy((1,), (1, 2)).update(torch.eye(4), torch.tensor([1, 0, 2, 1]))
    with pytest.raises(DataError, match="names class 988, but the network has 10 classes"):
        among_classes(torch.zeros(1, 10), imagenet_subset("imagenet-a"))
