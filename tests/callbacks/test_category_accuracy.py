"""Accuracy among categories, by both rules, against counts by hand."""

import pytest
import torch
from pytorch_lightning import LightningModule

from lit_robust.callbacks.category_accuracy import CategoryAccuracy
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError

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
