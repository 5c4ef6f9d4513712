import pytest

from lit_robust.data.packing.corrupting import CELLS
from lit_robust.reference.corruption_baselines import benchmark_corruptions, corruption_baseline
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, CORRUPTIONS


def test_alexnets_errors_on_all_images():
    baseline = corruption_baseline("imagenet-c")
    assert (baseline.images, baseline.clean_error) == (50_000, 0.4348)
    assert tuple(baseline.mean_errors) == ALL_CORRUPTIONS
    assert tuple(baseline.errors) == benchmark_corruptions() == CORRUPTIONS
    # Sum of the means that google-research/augmix imagenet.py lists, in percent, to all their digits.
    augmix = [
        88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592,
        85.3204, 64.6056, 71.7840, 60.6500,
    ]  # fmt: skip
    for name, mean in zip(CORRUPTIONS, augmix, strict=True):
        assert 100 * baseline.mean_errors[name] == pytest.approx(mean, abs=1e-9)
        assert 100 * sum(baseline.errors[name]) / 5 == pytest.approx(mean, abs=1e-9)
        # Errors of 50,000 images are whole numbers of images.
        assert all(abs(error * 50_000 - round(error * 50_000)) < 1e-6 for error in baseline.errors[name])


def test_alexnets_errors_on_robustbenchs_images():
    baseline = corruption_baseline("robustbench-5000")
    assert (baseline.images, set(baseline.errors)) == (5_000, set(CORRUPTIONS))
    mean_accuracy = 1 - sum(map(sum, baseline.errors.values())) / 75
    # AlexNet.json of RobustBench: corruptions_acc 21.12, clean_acc 56.24.
    assert round(100 * mean_accuracy, 2) == 21.12
    assert round(100 * (1 - baseline.clean_error), 2) == 56.24


def test_cells_are_named_after_these_corruptions():
    assert CELLS[:5] == tuple(f"{benchmark_corruptions()[0]}/{severity}" for severity in range(1, 6))
