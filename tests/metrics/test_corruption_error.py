"""Corruption errors, held to published accuracies and mean corruption errors."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_robust.core.errors import DataError, UserError
from lit_robust.metrics import CorruptionError, corruption_error, error_ratio, relative_corruption_error, summarise
from lit_robust.reference.corruption_baselines import FAMILIES, benchmark_corruptions, corruption_baseline

# RobustBench model_info/imagenet/corruptions/unaggregated_results.csv, 5,000 images a cell; here by network and row.
ROBUSTBENCH = Path(__file__).parent / "imagenet_c_robustbench.csv"
# corruptions_mce and corruptions_acc of the JSON files next to it, in percent.
PUBLISHED = {
    "AlexNet": (100.0, 21.12),
    "Standard_R50": (76.38, 39.48),
    "Geirhos2018_SIN": (76.67, 39.92),
    "Geirhos2018_SIN_IN": (68.67, 45.76),
    "Geirhos2018_SIN_IN_IN": (73.19, 42.0),
    "Hendrycks2020AugMix": (64.17, 49.33),
    "Hendrycks2020Many": (60.04, 52.9),
    "Salman2020Do_50_2_Linf": (80.0, 36.09),
    "Erichson2022NoisyMix": (60.46, 52.47),
    "Erichson2022NoisyMix_new": (59.43, 53.28),
    "Tian2022Deeper_DeiT-S": (47.61, 62.91),
    "Tian2022Deeper_DeiT-B": (41.7, 67.55),
}
# Top-1 accuracy and corruption error of ResNet-50, in percent: bethgelab/game-of-noise Results/clean_results.txt.
RESNET50 = {
    "gaussian_noise": (29.29, 79.77),
    "shot_noise": (27.03, 81.58),
    "impulse_noise": (23.81, 82.58),
    "defocus_blur": (38.75, 74.71),
    "glass_blur": (26.79, 88.61),
    "motion_blur": (38.67, 78.03),
    "zoom_blur": (36.24, 79.86),
    "snow": (32.53, 77.83),
    "frost": (38.14, 74.84),
    "fog": (45.83, 66.11),
    "brightness": (68.02, 56.64),
    "contrast": (39.06, 71.43),
    "elastic_transform": (45.25, 84.75),
    "pixelate": (44.79, 76.92),
    "jpeg_compression": (53.41, 76.82),
}


def robustbench():
    networks = {}
    for row in csv.DictReader(ROBUSTBENCH.open()):
        cells = networks.setdefault(row["network"], {})
        cells |= {f"{row['corruption']}/{severity}": float(row[str(severity)]) for severity in range(1, 6)}
    return networks


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_cells_give_published_means(network):
    found = summarise(robustbench()[network], corruption_baseline("robustbench-5000"))
    mce, accuracy = PUBLISHED[network]
    # Published to two digits of a percentage.
    assert 100 * found["mce"] == pytest.approx(mce, abs=0.005 + 1e-9)
    assert 100 * found["mean_accuracy"] == pytest.approx(accuracy, abs=0.005 + 1e-9)


@pytest.mark.parametrize("network", PUBLISHED)
def test_one_call_gives_the_published_mean_corruption_error(network):
    cells = robustbench()[network]
    benchmark = {cell: top1 for cell, top1 in cells.items() if cell.split("/")[0] in benchmark_corruptions()}
    rows = {name: [benchmark[f"{name}/{severity}"] for severity in range(1, 6)] for name in benchmark_corruptions()}
    published = PUBLISHED[network][0]
    for form in (benchmark, rows, {name: np.array(row) for name, row in rows.items()}):
        assert 100 * corruption_error(form, "robustbench-5000") == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize(
    ("top1", "baseline", "sentence"),
    [
        ({"fog/1": 0.5}, "imagenet-c", "74 of the 75 cells have no accuracy, the first gaussian_noise/1"),
        ({"fog": [0.5, 0.4]}, "imagenet-c", "'fog' has 2 accuracies: give 5 of a corruption, or 1 of a cell"),
        ({"fogg/1": 0.5}, "imagenet-c", "did you mean fog"),
        ({"fog/1": 0.5}, "imagenet_c", "did you mean imagenet-c.*Choose one of imagenet-c, robustbench-5000"),
    ],
)
def test_what_gives_no_mean_corruption_error_is_told(top1, baseline, sentence):
    with pytest.raises(UserError, match=sentence):
        corruption_error(top1, baseline)


def test_resnet50():
    cells = {f"{name}/{s}": top1 / 100 for name, (top1, _) in RESNET50.items() for s in range(1, 6)}
    found = summarise(cells, corruption_baseline("imagenet-c"), clean_error=1 - 0.7613)
    for name, (_, ce) in RESNET50.items():
        # Accuracies are published to 0.01 points, which a baseline of at least 56 % makes 0.02.
        assert 100 * found[f"ce_{name}"] == pytest.approx(ce, abs=0.02)
    assert found["mce"] == pytest.approx(0.7670, abs=1e-4)
    assert found["relative_mce"] == pytest.approx(1.0495, abs=2e-4)
    assert found["mean_accuracy"] == pytest.approx(0.3917, abs=5e-5)


@pytest.mark.parametrize("name", ["imagenet-c", "robustbench-5000"])
def test_the_baseline_has_errors_of_one(name):
    baseline = corruption_baseline(name)
    cells = {f"{c}/{s}": 1 - e for c, errors in baseline.errors.items() for s, e in enumerate(errors, 1)}
    found = summarise(cells, baseline, baseline.clean_error)
    # The errors' means are stored to 6 digits.
    assert found["mce"] == pytest.approx(1, abs=1e-12)
    assert found["relative_mce"] == pytest.approx(1, abs=1e-12)


def test_extra_corruptions_enter_no_mean():
    baseline = corruption_baseline("imagenet-c")
    cells = {f"{name}/{s}": 0.5 for name in benchmark_corruptions() for s in range(1, 6)}
    extra = {f"{name}/{s}": 0.9 for name in ("speckle_noise", "saturate") for s in range(1, 6)}
    without, found = summarise(cells, baseline), summarise(cells | extra, baseline)
    assert {name: found[name] for name in without} == without
    assert found["ce_speckle_noise"] == pytest.approx(0.1 / 0.845388)
    assert found["top1_saturate_4"] == 0.9


@pytest.mark.parametrize(("name", "count"), [("imagenet-c-bar", 10), ("imagenet-3dcc", 12)])
def test_other_benchmarks_have_a_mean_of_their_own(name, count):
    family = FAMILIES[name]
    assert len(set(family)) == count
    cells = {f"{corruption}/{s}": (place + s) / 20 for place, corruption in enumerate(family) for s in range(1, 6)}
    found = summarise(cells, corruption_baseline("imagenet-c"))
    assert "mce" not in found
    assert found["mean_accuracy"] == pytest.approx(sum(cells.values()) / len(cells))
    some = summarise({cell: value for cell, value in cells.items() if not cell.startswith(family[0])})
    assert "mean_accuracy" not in some
    assert "mean_accuracy_of_tested_cells" in some


def test_what_can_be_said_of_some_cells():
    fog = {f"fog/{s}": 1 - s / 10 for s in range(1, 6)}
    found = summarise(fog | {"snow/3": 0.4, "spatter/3": 0.1}, corruption_baseline("imagenet-c"), clean_error=0.1)
    assert set(found) == {
        "mean_accuracy_of_tested_cells", "mean_accuracy_of_extra_corruptions",
        "ce_fog", "top1_fog", "top1_snow_3", "top1_spatter_3",
        *(f"top1_fog_{s}" for s in range(1, 6)),
    }  # fmt: skip
    assert found["mean_accuracy_of_tested_cells"] == pytest.approx((3.5 + 0.4) / 6)
    assert found["mean_accuracy_of_extra_corruptions"] == 0.1
    assert found["ce_fog"] == pytest.approx(0.3 / 0.819324)


def test_metric_is_the_count_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    cells = [f"{name}/{s}" for name in benchmark_corruptions() for s in range(1, 6)]
    logits = torch.randn(900, 7, generator=generator)
    labels, groups = torch.randint(7, (900,), generator=generator), torch.arange(900) % 75
    metric = CorruptionError(cells, corruption_baseline("imagenet-c"))
    for part in torch.arange(900).split(64):
        metric.update(logits[part], labels[part], groups[part])
    computed = metric.compute()
    right = {cell: [] for cell in cells}
    for row, label, group in zip(logits.tolist(), labels.tolist(), groups.tolist(), strict=True):
        right[cells[group]].append(row.index(max(row)) == label)
    expected = {cell: sum(r) / len(r) for cell, r in right.items()}
    assert computed["top1"].tolist() == list(expected.values())
    assert computed["count"].tolist() == [12] * 75
    ces = [
        sum(1 - expected[f"{name}/{s}"] for s in range(1, 6)) / sum(errors)
        for name, errors in corruption_baseline("imagenet-c").errors.items()
    ]
    assert float(computed["mce"]) == pytest.approx(sum(ces) / 15, abs=1e-12)


def test_cells_without_samples_are_not_tested():
    metric = CorruptionError(["fog/1", "fog/2"], corruption_baseline("imagenet-c"))
    metric.update(torch.eye(2), torch.tensor([0, 0]), torch.tensor([1, 1]))
    computed = metric.compute()
    assert computed["top1"].isnan().tolist() == [True, False]
    assert math.isnan(computed["mce"])


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"fog/1": 45.83}, "The accuracy of fog/1 is 45.83: give a fraction from 0 to 1, not a percentage"),
        ({"fog/1": -0.1}, "The accuracy of fog/1 is -0.1: give a fraction"),
        ({"fog/1": math.nan}, "The accuracy of fog/1 is nan: give a fraction"),
        ({"fogg/1": 0.5}, "corruption of the cell 'fogg/1' is 'fogg', did you mean fog?"),
        ({"gausian_noise/1": 0.5}, "did you mean gaussian_noise"),
        ({"speckel_noise/1": 0.5}, "did you mean speckle_noise"),
        ({"rain/1": 0.5}, "is 'rain': choose one of gaussian_noise, .*, saturate"),
        ({"fog/6": 0.5}, "The cell 'fog/6' has severity '6': give"),
        ({"fog": 0.5}, "The cell 'fog' has severity '': give"),
    ],
)
def test_percentages_and_misspelt_cells_are_refused(cells, says):
    with pytest.raises(UserError, match=says):
        summarise(cells, corruption_baseline("imagenet-c"))
    if not any(isinstance(value, float) and not 0 <= value <= 1 for value in cells.values()):
        with pytest.raises(UserError, match=says):
            CorruptionError(list(cells))


def test_percentages_of_errors_are_refused():
    cells = {f"{c}/{s}": 0.5 for c in benchmark_corruptions() for s in range(1, 6)}
    with pytest.raises(UserError, match="The clean error is 23.87: give a fraction from 0 to 1, not a percentage"):
        summarise(cells, corruption_baseline("imagenet-c"), clean_error=23.87)
    for place, what in enumerate(("mean error", "clean error", "baseline's mean error", "baseline's clean error")):
        rates = [0.5, 0.2, 0.8, 0.4]
        rates[place] *= 100
        with pytest.raises(UserError, match=f"The {what} is {rates[place]:g}: give a fraction"):
            relative_corruption_error(*rates)
    for rates in ((50.0, 0.8), (0.5, 80.0)):
        with pytest.raises(UserError, match="give a fraction from 0 to 1, not a percentage"):
            error_ratio(*rates)


def test_the_ends_are_fractions():
    assert summarise({"fog/1": 0.0, "fog/2": 1.0})["mean_accuracy_of_tested_cells"] == 0.5


def test_an_unknown_baseline_is_told_of_the_choices():
    with pytest.raises(UserError, match="baseline is 'imagenet_c', did you mean imagenet-c"):
        corruption_baseline("imagenet_c")
    with pytest.raises(UserError, match="baseline is 'mine': choose one of imagenet-c, robustbench-5000"):
        corruption_baseline("mine")


def test_labels_out_of_range_are_refused():
    with pytest.raises(DataError, match="label 3, which is none of the network's 3 classes"):
        CorruptionError(["fog/1"]).update(torch.eye(3), torch.tensor([0, 1, 3]), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("cell", [3, -1, 1])
def test_cells_out_of_range_are_refused(cell):
    with pytest.raises(DataError, match=f"cell {cell}, where numbers go from 0 to 0: name every cell"):
        CorruptionError(["fog/1"]).update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, cell]))


def test_logits_that_are_no_numbers_are_refused():
    # The place of a NaN would be the answer, and right where that is the label.
    logits = torch.tensor([[0.0, 1.0], [math.nan, 1.0]])
    with pytest.raises(DataError, match="answer to image 1 of a batch is not a number"):
        CorruptionError(["fog/1"]).update(logits, torch.tensor([1, 0]), torch.tensor([0, 0]))


def test_a_baseline_without_errors_is_refused():
    with pytest.raises(UserError, match="The baseline's mean error is 0"):
        error_ratio(0.4, 0.0)
    with pytest.raises(UserError, match="The baseline's rise over its clean error is 0"):
        relative_corruption_error(0.4, 0.2, 0.3, 0.3)


def test_a_rate_that_is_not_a_fraction_is_named():
    for rates, name in (((50.0, 0.8), "The mean error is 50"), ((0.5, 1.5), "The baseline's mean error is 1.5")):
        with pytest.raises(UserError, match=f"^{name}: give a fraction"):
            error_ratio(*rates)


def test_the_extra_corruptions_have_a_mean_of_their_own():
    found = summarise({"fog/1": 0.5, "saturate/1": 0.25, "spatter/3": 0.75, "speckle_noise/2": 0.8})
    assert found["mean_accuracy_of_extra_corruptions"] == pytest.approx(0.6)
    assert found["mean_accuracy_of_tested_cells"] == 0.5
