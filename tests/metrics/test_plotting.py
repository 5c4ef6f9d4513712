"""Plots of a metric's value, and of several steps' values, as torchmetrics' own classes draw them."""

import pytest
import torch

from lit_robust.metrics import Calibration, CorruptionError, ErrorConsistency, OodDetection, ShapeBias
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
