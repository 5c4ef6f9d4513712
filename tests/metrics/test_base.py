"""What all metrics share: what they take, what they refuse, the choice of classes, and their plots."""

import numpy as np
import pytest
import torch

from lit_robust.core.errors import DataError, UserError
from lit_robust.metrics import (
    Calibration,
    CorruptionError,
    ErrorConsistency,
    OodDetection,
    RobustAccuracy,
    ShapeBias,
    TopKAccuracy,
    among_classes,
    area_under_response_rate_accuracy,
    area_under_roc,
    average_precision,
    category_probabilities,
    check_labels,
    corruption_error,
    error_consistency,
    error_ratio,
    expected_calibration_error,
    false_positive_rate,
    ood_score,
    precision_recall,
    relative_corruption_error,
    rms_calibration_error,
    rms_calibration_error_published,
    shape_bias,
    summarise,
    topk_correct,
)
from lit_robust.metrics.base import numbers, on_device
from lit_robust.reference import imagenet_subset
from lit_robust.reference.corruption_baselines import benchmark_corruptions, corruption_baseline

CELLS = [f"{name}/{severity}" for name in benchmark_corruptions() for severity in range(1, 6)]
EYE, BOTH = torch.eye(2), torch.tensor([0, 1])
# Two batches each, and the name of the value that is drawn.
METRICS = {
    "aurra": (Calibration(), [(EYE, BOTH), (EYE, BOTH.flip(0))], "rms_calibration_error"),
    "mce": (
        CorruptionError(CELLS, corruption_baseline("imagenet-c")),
        [(EYE.repeat(75, 1), labels, torch.arange(150) // 2) for labels in (BOTH.repeat(75), BOTH.repeat(75) * 0)],
        "mce",
    ),
    "errors": (
        ErrorConsistency(2),
        [(BOTH == 1, torch.stack([BOTH, BOTH])), (BOTH == 1, torch.stack([BOTH, BOTH.flip(0)]))],
        "error_consistency",
    ),
    "ood": (OodDetection(), [(EYE[0], BOTH == 0), (EYE[0], BOTH == 1)], "aupr"),
    "shape": (ShapeBias({"a": (0,), "b": (1,)}), [(EYE, BOTH, BOTH.flip(0)), (EYE, BOTH.flip(0), BOTH)], "shape_bias"),
}


@pytest.mark.parametrize("name", METRICS)
def test_one_value_and_those_of_several_steps(name):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    metric, batches, shown = METRICS[name]
    steps = [metric(*batch) for batch in batches]
    values = [float(step[shown].nanmean()) for step in steps]
    assert values[0] != values[1]
    _, axes = metric.plot(steps)
    # A batch's values stand in one line over the steps.
    assert [line.get_ydata().tolist() for line in axes.lines if len(line.get_ydata()) == 2] == [pytest.approx(values)]
    _, axes = metric.plot(steps[1])
    assert axes.lines[0].get_ydata().tolist() == pytest.approx(values[1:])
    metric.plot()
    pyplot.close("all")


LOGITS, LABELS = np.array([[2.0, 1.0, 0.0], [0.5, 1.5, 0.25], [0.0, 3.0, 1.0]], np.float64), np.array([0, 2, 1])
SCORES, RIGHT = np.array([0.9, 0.25, 0.5]), np.array([True, False, True])
CATEGORIES = {"a": (0,), "b": (1, 2)}
# All public measures with what they are asked, as NumPy has it.
FUNCTIONS = {
    "topk_correct": lambda of: topk_correct(of(LOGITS), of(LABELS), (1, 2)),
    "among_classes": lambda of: among_classes(of(LOGITS), (0, 2)),
    "category_probabilities": lambda of: category_probabilities(of(LOGITS), CATEGORIES),
    "ood_score": lambda of: ood_score(of(LOGITS), "energy"),
    "average_precision": lambda of: average_precision(of(SCORES), of(RIGHT)),
    "area_under_roc": lambda of: area_under_roc(of(SCORES), of(RIGHT)),
    "false_positive_rate": lambda of: false_positive_rate(of(SCORES), of(RIGHT)),
    "precision_recall": lambda of: torch.stack(precision_recall(of(SCORES), of(RIGHT))),
    "rms_calibration_error": lambda of: rms_calibration_error(of(SCORES), of(RIGHT)),
    "rms_calibration_error_published": lambda of: rms_calibration_error_published(of(SCORES), of(RIGHT), 1),
    "expected_calibration_error": lambda of: expected_calibration_error(of(SCORES), of(RIGHT)),
    "area_under_response_rate_accuracy": lambda of: area_under_response_rate_accuracy(of(SCORES), of(RIGHT)),
    "error_consistency": lambda of: error_consistency(of(np.array([[20, 10], [10, 60]]))),
    "shape_bias": lambda of: shape_bias(of(np.array(133)), of(np.array(597))),
    "corruption_error": lambda of: torch.tensor(
        corruption_error({name: of(np.array([0.9, 0.8, 0.7, 0.6, 0.5])) for name in benchmark_corruptions()})
    ),
    "error_ratio": lambda of: torch.tensor(error_ratio(of(np.array(0.5)), of(np.array(0.8)))),
    "relative_corruption_error": lambda of: torch.tensor(
        relative_corruption_error(*(of(np.array(rate)) for rate in (0.5, 0.2, 0.8, 0.4)))
    ),
    "summarise": lambda of: torch.tensor(list(summarise({"fog/1": of(np.array(0.75))}).values())),
    "check_labels": lambda of: torch.tensor(check_labels(of(LABELS), 3) is None),
}
# What each part of a batch is called, how many axes it has, and which numbers it takes.
PARTS = {
    "accuracy": {"logits": (2, "real"), "labels": (1, "whole")},
    "robust": {"survives": (2, "truth")},
    "calibration": {"logits": (2, "real"), "labels": (1, "whole")},
    "corruption": {"logits": (2, "real"), "labels": (1, "whole"), "groups": (1, "whole")},
    "consistency": {"correct": (1, "truth"), "observed": (2, "real")},
    "ood": {"scores": (1, "real"), "positive": (1, "truth")},
    "shape": {"logits": (2, "real"), "shapes": (1, "whole"), "textures": (1, "whole")},
}
METRICS_AND_BATCHES = {
    "accuracy": (lambda: TopKAccuracy((1, 2)), (LOGITS, LABELS)),
    "robust": (lambda: RobustAccuracy(2), (np.stack([RIGHT, ~RIGHT]),)),
    "calibration": (Calibration, (LOGITS, LABELS)),
    "corruption": (lambda: CorruptionError(["fog/1", "fog/2"]), (LOGITS, LABELS, np.array([0, 1, 1]))),
    "consistency": (lambda: ErrorConsistency(2), (RIGHT, np.array([[1, 0, -1], [1, 1, 0]]))),
    "ood": (OodDetection, (SCORES, RIGHT)),
    "shape": (lambda: ShapeBias(CATEGORIES), (LOGITS, np.array([0, 1, 1]), np.array([1, 1, 0]))),
}
FORMS = {
    "list": lambda values: values.tolist(),
    "array": lambda values: values,
    "reversed view": lambda values: values[::-1].copy()[::-1] if values.ndim else values,
    "big-endian": lambda values: values.astype(values.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_measure_takes_arrays_and_pythons_numbers(name, form):
    measure = FUNCTIONS[name]
    # Scores of 0.9 differ in fp32, so that a lost digit would show.
    assert torch.equal(measure(FORMS[form]), measure(torch.tensor))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", METRICS_AND_BATCHES)
def test_every_metric_takes_arrays_and_pythons_numbers(name, form):
    make, batch = METRICS_AND_BATCHES[name]
    values = []
    for of in (FORMS[form], torch.tensor):
        metric = make()
        metric.update(*map(of, batch))
        found = metric.compute()
        values.append(found if isinstance(found, dict) else {"value": found})
    for key, value in values[0].items():
        torch.testing.assert_close(value, values[1][key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda values: np.array(values, dtype=np.uint8)])
def test_classes_and_numbers_of_answers_may_be_arrays(form):
    logits, labels = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 3] * 10)
    assert torch.equal(among_classes(logits, form([1, 3])), among_classes(logits, (1, 3)))
    assert torch.equal(among_classes(logits, form([])), logits)
    assert torch.equal(topk_correct(logits, labels, form([1, 2])), topk_correct(logits, labels, (1, 2)))
    assert topk_correct(logits, labels, 2).tolist() == topk_correct(logits, labels, (2,)).tolist()
    check_labels(labels, 5, form([1, 3]))
    with pytest.raises(DataError, match="label 3, which is none of the 1 classes of the set"):
        check_labels(labels, 5, form([1]))
    metric = TopKAccuracy(form([1, 2]), form([1, 3]))
    metric.update(logits, labels)
    assert metric.compute()[1] == 1
    with pytest.raises(UserError, match=r"top_k is of the type torch.float64: give whole numbers"):
        TopKAccuracy([1.5])


@pytest.mark.parametrize("wrong", ["text", None, {"a": 1}, [[1, 2], [3]], np.array(["a", "b"]), object()])
def test_what_is_not_numbers_is_refused_by_its_type(wrong):
    with pytest.raises(UserError, match=f"scores is of type {type(wrong).__name__}: give a tensor, a NumPy array"):
        numbers("scores", wrong)


@pytest.mark.parametrize(
    ("values", "axes", "kind", "says"),
    [
        ([1.0, 2.0], 2, "real", r"has the type torch.float64 and the shape \[2\]: give real numbers in 2 axes"),
        ([1j, 2.0], 1, "real", "has the type torch.complex128"),
        ([1.0, 2.0], 1, "whole", "is of the type torch.float64: give whole numbers"),
        ([True, False], 1, "whole", "is of the type torch.bool: give whole numbers"),
        ([0, 2], 1, "truth", "holds other numbers than 0 and 1"),
        ([0.5, 1.0], 1, "truth", "holds other numbers than 0 and 1"),
    ],
)
def test_numbers_of_another_kind_are_refused(values, axes, kind, says):
    for given in (values, torch.tensor(np.array(values))):
        with pytest.raises(UserError, match=f"^parts {says}"):
            numbers("parts", given, axes, kind)


@pytest.mark.parametrize("name", METRICS_AND_BATCHES)
def test_parts_of_other_lengths_are_not_broadcast(name):
    make, batch = METRICS_AND_BATCHES[name]
    if len(batch) == 1:
        batch, says = (batch[0][:1],), "survives is of 1 strengths: give those of 2"
    else:
        batch = (*batch[:-1], batch[-1][..., :1])
        counts = ", ".join(f"{part} {len(values)}" for part, values in zip(PARTS[name], batch, strict=True))
        says = r"observed has the shape \[2, 1\]" if name == "consistency" else rf"samples \({counts}\): give as many"
    with pytest.raises(UserError, match=says):
        make().update(*map(torch.tensor, batch))


def _with(batch, place, values):
    return (*batch[:place], values, *batch[place + 1 :])


@pytest.mark.parametrize("name", METRICS_AND_BATCHES)
def test_a_part_with_an_axis_more_or_less_or_of_another_kind_is_named(name):
    make, batch = METRICS_AND_BATCHES[name]
    assert len(batch) == len(PARTS[name])
    for place, (part, (axes, kind)) in enumerate(PARTS[name].items()):
        for wrong in (batch[place][None], batch[place][0]):
            with pytest.raises(UserError, match=rf"^{part} has the type .* give real numbers in {axes} axes\.$"):
                make().update(*_with(batch, place, wrong))
        if kind == "whole":
            with pytest.raises(UserError, match=f"^{part} is of the type torch.float64: give whole numbers"):
                make().update(*_with(batch, place, batch[place] + 0.5))
        if kind == "truth":
            with pytest.raises(UserError, match=f"^{part} holds other numbers than 0 and 1"):
                make().update(*_with(batch, place, batch[place] + 1.0))


ON_SCORES = (average_precision, area_under_roc, false_positive_rate, precision_recall)
ON_CONFIDENCE = (
    rms_calibration_error,
    rms_calibration_error_published,
    expected_calibration_error,
    area_under_response_rate_accuracy,
)


@pytest.mark.parametrize(
    ("measure", "values", "truths"),
    [
        *((measure, "scores", "positive") for measure in ON_SCORES),
        *((measure, "confidence", "correct") for measure in ON_CONFIDENCE),
    ],
)
def test_the_functions_name_what_they_cannot_take(measure, values, truths):
    for wrong in (SCORES[None], SCORES[0]):
        with pytest.raises(UserError, match=rf"^{values} has the type .* in 1 axes\.$"):
            measure(wrong, RIGHT)
    with pytest.raises(UserError, match=rf"^{truths} has the type .* in 1 axes\.$"):
        measure(SCORES, RIGHT[None])
    with pytest.raises(UserError, match=f"^{truths} holds other numbers than 0 and 1"):
        measure(SCORES, [0, 1, 2])
    with pytest.raises(UserError, match=rf"samples \({values} 3, {truths} 2\): give as many"):
        measure(SCORES, [True, False])


def test_functions_of_logits_name_what_they_cannot_take():
    functions = (
        lambda logits: ood_score(logits, "energy"),
        lambda logits: among_classes(logits, (0,)),
        lambda logits: category_probabilities(logits, CATEGORIES),
        lambda logits: topk_correct(logits, LABELS, (1,)),
    )
    for function in functions:
        for wrong in (LOGITS[None], LOGITS[0]):
            with pytest.raises(UserError, match=r"^logits has the type .* in 2 axes\.$"):
                function(wrong)
    for function in (lambda labels: topk_correct(LOGITS, labels, (1,)), lambda labels: check_labels(labels, 3)):
        with pytest.raises(UserError, match=r"^labels has the type .* in 1 axes\.$"):
            function(LABELS[None])
        with pytest.raises(UserError, match=r"^labels is of the type torch.float64: give whole numbers"):
            function(LABELS / 2)
    with pytest.raises(UserError, match=r"samples \(logits 3, labels 2\): give as many"):
        topk_correct(LOGITS, LABELS[:2], (1,))
    for part, measure in (
        ("shape", lambda wrong: shape_bias(wrong, 1)),
        ("texture", lambda wrong: shape_bias(1, wrong)),
        ("counts", error_consistency),
    ):
        with pytest.raises(UserError, match=rf"^{part} has the type torch.complex128 .*: give real numbers\.$"):
            measure([1j])
    assert shape_bias(1, 2).dtype == numbers("whole", 3).dtype == torch.float64


def test_words_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="score is 'max_logits', did you mean max_logit"):
        ood_score(LOGITS, "max_logits")
    with pytest.raises(UserError, match="aggregation is 'average': choose one of mean, max, sum"):
        category_probabilities(LOGITS, CATEGORIES, "average")


@pytest.mark.parametrize("confidence", [[0.5, 61.0], [-0.1, 0.5], [0.5, float("nan")]])
def test_confidences_that_are_not_fractions_are_refused(confidence):
    for measure in (rms_calibration_error, expected_calibration_error, area_under_response_rate_accuracy):
        with pytest.raises(UserError, match="A confidence is .*: give fractions from 0 to 1"):
            measure(confidence, [True, False])


def test_scores_without_a_rank_are_refused():
    for measure in (average_precision, area_under_roc, false_positive_rate):
        with pytest.raises(UserError, match="score in place 1 is not a number"):
            measure([0.5, float("nan"), 0.1], [True, False, False])


def test_observers_answer_with_right_wrong_or_not_at_all():
    with pytest.raises(UserError, match="each 1, 0 or -1"):
        ErrorConsistency(1).update(RIGHT, [[1, 0, 2]])
    with pytest.raises(UserError, match="give two rows and columns of 0 or more"):
        error_consistency([[1, -1], [0, 0]])
    with pytest.raises(UserError, match="give two rows and columns"):
        error_consistency([1, 2])


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
    for classes, wrong in ((imagenet_subset("imagenet-a"), 988), ((0, 10), 10), ((-1, 2), -1)):
        with pytest.raises(DataError, match=f"names class {wrong}, but the network has 10 classes"):
            among_classes(torch.zeros(1, 10), classes)
    assert among_classes(torch.zeros(1, 10), (0, 9)).isfinite().sum() == 2


def test_numbers_are_copied_once():
    cpu = torch.device("cpu")
    assert on_device((2, 0), cpu) is on_device((2, 0), cpu)
    assert on_device((2, 0), cpu).tolist() == [2, 0]
    assert on_device((0, 2), cpu).tolist() == [0, 2]


def test_numbers_first_asked_for_in_inference_mode_serve_autograd():
    categories = {"one": (7, 3), "two": (5,)}
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = category_probabilities(logits, categories)
    logits.requires_grad_(True)
    found = category_probabilities(logits, categories)
    found[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(found.detach(), expected)
    assert logits.grad is not None
