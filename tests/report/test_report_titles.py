"""Titles of test sets: papers' names for what can be that set, honest ones for what cannot."""

import pytest
from naming import named

from lit_robust.report.titles import dataset_title, is_detail, metric_title


def measured(dataset, **protocol):
    return named(dataset, "top1", 0.5, "fraction", 10, protocol)


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


@pytest.mark.parametrize(
    ("dataset", "metric", "title"),
    [
        ("imagenet-c", "mce", "mCE"),
        ("imagenet-c", "ce_gaussian_noise", "CE, gaussian noise"),
        ("imagenet-c-like", "top1_fog_3", "Top-1 accuracy, fog, severity 3"),
        ("imagenet", "top1_theta_20", "Top-1 accuracy, theta 20"),
        ("imagenet-a", "top1_all_classes", "Top-1 accuracy, all classes"),
        ("imagenet", "top1_imagenet_a_classes", "Top-1 accuracy, ImageNet-A's classes"),
        ("imagenet-o", "aupr", "AUPR"),
        ("imagenet-o", "aupr_max_logit", "AUPR, max logit"),
        ("imagenet-o", "fpr95_energy", "FPR at 95 % recall, energy"),
        ("imagenet", "rms_calibration_error_published", "RMS calibration error, as published"),
        ("cue-conflict", "error_consistency_subject_01", "Error consistency, subject 01"),
        ("imagenet", "adversarial_accuracy_gray_box_l2_eps_1", "Adversarial, gray-box, L2, eps 1"),
        ("imagenet", "adversarial_accuracy_black_box_any_step_l2_eps_1", "Adversarial any step, black-box, L2, eps 1"),
    ],
)
def test_metrics_have_the_names_people_use(dataset, metric, title):
    assert metric_title(named(dataset, metric, 0.5, "fraction", 10, {})) == title


def test_corrupted_values_are_told_from_other_accuracies():
    def place(dataset, metric, **protocol):
        facets = named(dataset, metric, 0.5, "fraction", 10, protocol).facets
        return facets.get("measure"), facets.get("corruption"), facets.get("severity")

    assert place("imagenet-c", "top1_jpeg_compression_5") == ("top1", "jpeg_compression", 5)
    assert place("imagenet-c", "top1_jpeg_compression") == ("top1", "jpeg_compression", None)
    assert place("imagenet-c", "ce_fog") == ("ce", "fog", None)
    assert place("fog-only", "top1_fog_3", cells=["fog/3"]) == ("top1", "fog", 3)
    assert place("fog-only", "top1_fog_3")[1] is None
    for dataset, metric in (
        ("imagenet-c", "mean_accuracy"),
        ("imagenet-c", "top1"),
        ("imagenet", "top1_imagenet_a_classes"),
    ):
        assert place(dataset, metric)[1] is None
    mine = named("fog-only", "top1_fog_3", 0.5, "fraction", 10, {"cells": ["fog/3"]})
    assert is_detail(mine)
    assert not is_detail(named("fog-only", "top1_fog_3", 0.5, "fraction", 10, {}))
