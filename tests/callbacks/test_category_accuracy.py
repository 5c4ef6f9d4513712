"""Accuracy among categories, by both rules, against counts by hand."""

import pytest
import torch
from pytorch_lightning import LightningModule

from lit_robust.callbacks.category_accuracy import CategoryAccuracy, ListedClassAccuracy, MergedClassAccuracy
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.reference import objectnet_classes

CATEGORIES = {"cat": [0, 1], "dog": [2, 3, 4], "knife": [6]}


def counted(labels, logits, categories=CATEGORIES):
    evaluation = CategoryAccuracy("silhouettes", categories)
    evaluation.described = EvaluationSet("silhouettes", len(labels), {})
    evaluation.prepare(LightningModule(), evaluation.described)
    for begin in range(0, len(labels), 2):
        part = slice(begin, begin + 2)
        own = torch.tensor(labels[part])
        places = torch.arange(len(own))
        batch = Batch(torch.zeros(len(own), 3, 2, 2), own, places, torch.ones(len(own), dtype=torch.bool))
        evaluation.update(LightningModule(), batch, torch.tensor(logits[part], dtype=torch.float32))
    return {result.metric: result for result in evaluation.compute()}


def test_both_rules_by_hand():
    # Class 5 is of no category. The last image's best class is a dog, but on average cats are more probable.
    labels = [0, 1, 2, 6, 5, 0]
    logits = [
        [9, 0, 0, 0, 0, 0, 0],  # cat as cat
        [0, 0, 9, 0, 0, 0, 0],  # cat as dog
        [0, 0, 0, 9, 0, 0, 0],  # dog as another dog
        [0, 0, 0, 0, 0, 9, 8],  # knife as no category, but of the categories as knife
        [0, 0, 0, 0, 0, 0, 9],  # of no category: not counted
        [2.0, 1.9, 2.1, -9, -9, -9, -9],  # cat as dog by class, as cat by the mean
    ]
    found = counted(labels, logits)
    assert (found["category_accuracy_class"].value, found["category_accuracy_class"].count) == (2 / 5, 5)
    assert (found["category_accuracy_mean"].value, found["category_accuracy_mean"].count) == (4 / 5, 5)
    assert (found["category_accuracy_class_cat"].value, found["category_accuracy_class_cat"].count) == (1 / 3, 3)
    assert found["category_accuracy_mean_cat"].value == 2 / 3
    assert found["category_accuracy_mean_knife"].facets["category"] == "knife"
    low, high = found["category_accuracy_class"].interval
    assert low < 2 / 5 < high


def test_a_set_without_the_categories_is_refused():
    with pytest.raises(UserError, match="No image of silhouettes is of a category"):
        counted([5, 5], [[0.0] * 7] * 2)


@pytest.mark.parametrize("categories", [{}, {"cat": []}, {"cat": [1], "dog": [1]}, {"cat": [-1]}])
def test_categories_without_classes_of_their_own_are_refused(categories):
    with pytest.raises(UserError, match="give each one classes of its own"):
        CategoryAccuracy("silhouettes", categories)


def test_by_default_they_are_the_sixteen():
    assert len(CategoryAccuracy("silhouettes").categories) == 16


def merged(logits, labels, described, kind=MergedClassAccuracy):
    evaluation = kind(described.name)
    evaluation.described = described
    evaluation.prepare(LightningModule(), described)
    for row, label in zip(logits, labels, strict=True):
        one = torch.ones(1, dtype=torch.bool)
        batch = Batch(torch.zeros(1, 3, 2, 2), torch.tensor([label]), torch.zeros(1).long(), one)
        evaluation.update(LightningModule(), batch, row[None])
    return {result.metric: result for result in evaluation.compute()}


def test_merged_classes_are_right_where_any_of_them_is():
    """As imagenet-testbed's ``objectnet_accuracy``: among the listed logits the best is one of the folder's."""
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(400, 1000, generator=random).double()
    labels = torch.randint(113, (400,), generator=random).tolist()
    folders = list(objectnet_classes().values())
    for row, label in zip(logits, labels, strict=True):  # So that some are right.
        row[folders[label][-1]] += 2.5
    listed = [number for members in folders for number in members]
    best = [listed[int(row[listed].argmax())] for row in logits]
    right = [answer in folders[label] for answer, label in zip(best, labels, strict=True)]
    anywhere = [int(row.argmax()) in folders[label] for row, label in zip(logits, labels, strict=True)]
    found = merged(logits, labels, EvaluationSet("objectnet", 400, {}, categories=objectnet_classes()))
    assert found["top1"].value == sum(right) / 400
    assert found["top1_all_classes"].value == sum(anywhere) / 400
    assert 0 < sum(anywhere) < sum(right) < 400 * found["top5"].value < 400
    # The same answers to images of ImageNet, of which those of other classes do not count.
    numbers = [folders[label][0] for label in labels]
    more = torch.cat([logits, logits[:7]])
    on_imagenet = merged(more, [*numbers, *[0] * 7], EvaluationSet("imagenet", 407, {"num_classes": 1000}))
    assert list(on_imagenet) == ["top1_objectnet_classes"]
    value = on_imagenet["top1_objectnet_classes"]
    assert (value.value, value.count) == (sum(right) / 400, 400)


def test_objectnets_classes_are_not_those_of_other_sets():
    with pytest.raises(UserError, match="imagenet has 26 classes, and ObjectNet's are among"):
        merged(torch.zeros(1, 26), [0], EvaluationSet("imagenet", 1, {"num_classes": 26}))


def test_any_listed_class_is_right():
    """As taesiri/ZoomIsAllYouNeed scores ImageNet-Hard: the answer, or one of five, is one of the image's labels."""
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(300, 50, generator=random)
    lists = {"3-7": (3, 7), "7-9-20": (7, 9, 20), "4": (4,)}  # Class 7 is in two lists, 49 in none.
    labels = torch.randint(3, (300,), generator=random).tolist()
    truths = [set(list(lists.values())[label]) for label in labels]
    expected = [
        sum(bool(truth & set(row.topk(count).indices.tolist())) for row, truth in zip(logits, truths, strict=True))
        for count in (1, 5)
    ]
    described = EvaluationSet("imagenet-hard", 300, {"right": "listed"}, categories=lists)
    found = merged(logits, labels, described, ListedClassAccuracy)
    assert [round(found[name].value * 300) for name in ("top1", "top5")] == expected
    assert 0 < expected[0] < expected[1] < 300
    with pytest.raises(UserError, match="lists no right classes: set its `classes` to listed"):
        merged(logits, labels, EvaluationSet("objectnet", 300, {}, categories=lists), ListedClassAccuracy)
