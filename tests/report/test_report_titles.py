"""Titles of test sets: papers' names for what can be that set, honest ones for what cannot."""

import pytest

from lit_robust.report.titles import dataset_title
from lit_robust.results import Result


def measured(dataset, **protocol):
    return Result(dataset, "top1", 0.5, "fraction", 10, protocol)


@pytest.mark.parametrize(
    ("dataset", "num_classes", "title"),
    [
        ("imagenet", 1000, "ImageNet"),
        ("imagenet", 8, "imagenet of 8 classes"),
        ("imagenet-c-like", 8, "imagenet-c-like of 8 classes"),
        ("restricted-imagenet", 9, "Restricted ImageNet"),
        ("restricted-imagenet", 1000, "restricted-imagenet of 1000 classes"),
        ("cue-conflict", 16, "Cue conflict"),
        ("cue-conflict", 8, "Cue conflict"),
        ("pets", 37, "pets"),
    ],
)
def test_a_papers_name_needs_its_count_of_classes(dataset, num_classes, title):
    assert dataset_title(dataset, [measured(dataset, num_classes=num_classes)]) == title


def test_other_sets_and_silent_results_say_nothing():
    assert dataset_title("imagenet", [measured("imagenet-a", num_classes=8), measured("imagenet")]) == "ImageNet"
    both = [measured("imagenet", num_classes=1000), measured("imagenet", num_classes=8)]
    assert dataset_title("imagenet", both) == "imagenet of 8 classes"
