"""Calibration measures against loops that follow their definitions sample by sample."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from lit_robust.core.errors import DataError
from lit_robust.metrics import (
    Calibration,
    area_under_response_rate_accuracy,
    expected_calibration_error,
    rms_calibration_error,
    rms_calibration_error_published,
)


def samples(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator)
    return confidence, torch.rand(count, generator=generator) < confidence**2


def binned(confidence, correct, size, skips_last):
    pairs = sorted(zip(confidence.double().tolist(), correct.tolist(), strict=True))
    number = max(1, len(pairs) // size)
    bins = [pairs[i * size : (i + 1) * size] for i in range(number)]
    bins[-1] = pairs[(number - 1) * size :]
    total = 0.0
    for part in bins[:-1] if skips_last else bins:
        gap = np.mean([c for c, _ in part]) - np.mean([r for _, r in part])
        total += len(part) / len(pairs) * gap**2
    return math.sqrt(total)


@pytest.mark.parametrize("count", [7, 100, 199, 200, 1037])
def test_rms_error_by_a_loop(count):
    confidence, correct = samples(count)
    # Sums in another order, in float64.
    assert float(rms_calibration_error(confidence, correct)) == pytest.approx(
        binned(confidence, correct, 100, False), abs=1e-12
    )
    published = float(rms_calibration_error_published(confidence, correct))
    if count < 200:
        assert math.isnan(published)
    else:
        assert published == pytest.approx(binned(confidence, correct, 100, True), abs=1e-12)


def test_the_skipped_bin_matters():
    # Sure of everything, and wrong where surest.
    confidence = torch.linspace(0.9, 1, 300)
    correct = torch.arange(300) < 200
    assert float(rms_calibration_error(confidence, correct)) > 0.5
    assert float(rms_calibration_error_published(confidence, correct)) < 0.1


def test_aurra_by_a_loop():
    confidence, correct = samples(313)
    right, running = 0, []
    for answered, place in enumerate(np.argsort(-confidence.numpy()), 1):
        right += bool(correct[place])
        running.append(right / answered)
    assert float(area_under_response_rate_accuracy(confidence, correct)) == pytest.approx(np.mean(running), abs=1e-12)


def test_ece_is_torchmetrics():
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(400, 5, generator=generator), torch.randint(5, (400,), generator=generator)
    confidence, answer = logits.softmax(1).max(1)
    peer = MulticlassCalibrationError(5, n_bins=15, norm="l1")(logits.softmax(1), labels)
    # The peer sums in fp32.
    assert float(expected_calibration_error(confidence, answer == labels)) == pytest.approx(float(peer), abs=1e-6)


def test_ece_at_the_edges_of_bins():
    # 0 and 1/15 share the first bin, 1 is in the last.
    confidence = torch.tensor([0.0, 1 / 15, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, False, True])
    assert float(expected_calibration_error(confidence, correct)) == pytest.approx((1 - 1 / 15) / 3, abs=1e-12)


def test_neighbouring_bins_of_ece_stay_apart_at_both_ends():
    # Gaps of opposite sign, which would cancel in one bin.
    for confidence, correct in (([0.01, 0.1], [True, False]), ([0.99, 0.92], [False, True])):
        gaps = [abs(value - right) for value, right in zip(confidence, correct, strict=True)]
        assert float(expected_calibration_error(confidence, correct)) == pytest.approx(sum(gaps) / 2, abs=1e-12)


def test_equal_confidences_share_their_accuracy_in_any_order():
    confidence, correct = samples(500, seed=4)
    confidence = (confidence * 8).round() / 8
    order = torch.randperm(500, generator=torch.Generator().manual_seed(5))
    measures = (
        rms_calibration_error,
        rms_calibration_error_published,
        expected_calibration_error,
        area_under_response_rate_accuracy,
    )
    for measure in measures:
        assert measure(confidence, correct) == measure(confidence[order], correct[order])
    # The mean over many orders of what depends on the order.
    running = []
    for seed in range(2000):
        shuffled = np.random.default_rng(seed).permutation(500)
        right = correct.numpy()[shuffled][np.argsort(-confidence.numpy()[shuffled], kind="stable")]
        running.append((right.cumsum() / np.arange(1, 501)).mean())
    # 2,000 orders whose AURRA has a standard deviation of 0.01.
    assert float(area_under_response_rate_accuracy(confidence, correct)) == pytest.approx(np.mean(running), abs=1.2e-3)


def test_metric_in_any_batches():
    generator = torch.Generator().manual_seed(6)
    logits, labels = 2 * torch.randn(450, 6, generator=generator), torch.randint(6, (450,), generator=generator)
    confidence, answer = logits.softmax(1).max(1)
    metric = Calibration()
    for part in torch.arange(450).split(101):
        metric.update(logits[part], labels[part])
    metric.update(logits[:0], labels[:0])
    computed = metric.compute()
    assert computed["rms_calibration_error"] == rms_calibration_error(confidence, answer == labels)
    assert computed["aurra"] == area_under_response_rate_accuracy(confidence, answer == labels)


def test_nothing_kept_is_undefined():
    metric = Calibration()
    metric.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert all(value.isnan() for value in metric.compute().values())
    confidence, correct = Calibration().kept()
    assert (len(confidence), len(correct), correct.dtype) == (0, 0, torch.bool)


def test_labels_out_of_range_are_refused():
    with pytest.raises(DataError, match="label -1"):
        Calibration().update(torch.eye(2), torch.tensor([0, -1]))


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="answer to image 1 of a batch is not a number"):
        Calibration().update(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), torch.tensor([0, 1]))
