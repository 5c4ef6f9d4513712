"""Networks next to people and next to published ones: ranks that model-vs-human prints, and lines fit by NumPy."""

import re
from pathlib import Path

import numpy as np
import pytest

from lit_robust.core.results import Result, RunResults
from lit_robust.reference import human_sets, standard_networks
from lit_robust.report import humans
from lit_robust.report.page import page
from lit_robust.report.plots.conditions import condition_plots
from lit_robust.report.plots.effective import effective_plots
from lit_robust.report.runs import Run

# latex-report/assets/benchmark_table_humanlike.tex of bethgelab/model-vs-human, with its mean ranks.
PRINTED = {
    "SimCLR-x1": ((0.080, 0.667, 0.179), 1.333),
    "ResNet-50": ((0.087, 0.665, 0.208), 1.667),
    "BagNet-33": ((0.156, 0.567, 0.137), 3.0),
}


def run(label, results):
    return Run(label, Path(), RunResults({}, {}, results), False)


def compared(values, sets):
    names = zip(humans.MEASURES, values, strict=True)
    told = {"humans": {"accuracy": 0.9}}
    return [Result(one, name, value, "fraction", 9, told) for name, value in names for one in sets]


def test_ranks_are_those_that_model_vs_human_prints(monkeypatch):
    monkeypatch.setattr(humans, "published_names", list)
    runs = [run(label, compared(values, human_sets())) for label, (values, _) in PRINTED.items()]
    found = humans.ranking(runs[::-1])
    assert [row.label for row in found] == list(PRINTED)
    assert [round(row.rank, 3) for row in found] == [rank for _, rank in PRINTED.values()]


def test_people_and_published_networks_stand_beside_and_few_sets_have_no_rank():
    assert humans.ranking([run("plain", [Result("imagenet", "top1", 0.5, "fraction", 9, {})])]) == []
    some = run("<some>", compared((0.1, 0.6, 0.2), human_sets()[:2]))
    found = humans.ranking([some])
    assert found[0].label == "ViT-22B-384"  # The first of its README, too.
    assert found[-1].label == "Humans"
    own = next(row for row in found if row.label == "<some>")
    assert (own.sets, own.rank, own.published) == (2, None, False)
    assert own.values["error_consistency"] == pytest.approx(0.2)
    text = page([some])
    assert "Nearness to people" in text
    assert "&lt;some&gt;" in text


def test_conditions_stand_in_their_order_beside_people():
    told = {"humans": {"accuracy": 0.8, "error_consistency": 0.4}}
    results = [
        Result("contrast", f"accuracy_among_categories_{c}", v, "fraction", 160, told, (v - 0.05, v + 0.05), facets)
        for c, v in (("c05", 0.4), ("c100", 0.9))
        for facets in [{"measure": "accuracy_among_categories", "condition": c}]
    ]
    (plot,) = condition_plots({"mine": RunResults({}, {}, results)})
    assert plot.dataset == "contrast"
    assert "mine: 0.900 at c100, 0.400 at c05; people: 0.800 at c100, 0.800 at c05" in plot.svg
    assert "contrast, %" in plot.svg


@pytest.mark.parametrize(
    ("dataset", "metric", "column"),
    [
        ("objectnet", "top1_objectnet_classes", "imagenet_of_objectnet"),
        ("imagenet-sketch", "top1", "imagenet"),
        ("imagenet-a", "top1_imagenet_a_classes", "imagenet_of_a"),
    ],
)
def test_points_lie_beyond_a_line_that_numpy_fits(dataset, metric, column):
    results = [
        Result("imagenet", metric, 0.75, "fraction", 6250, {"num_classes": 1000}),
        Result(dataset, "top1", 0.45, "fraction", 18514, {}, (0.44, 0.46)),
    ]
    (plot,) = effective_plots({"mine": RunResults({}, {}, results)})
    networks = [one for one in standard_networks(dataset, column) if one[0] != "resnet50" or dataset != "imagenet-a"]
    _, clean, shifted = map(np.array, zip(*networks, strict=True))
    logit = lambda value: np.log(value / (1 - value))  # noqa: E731
    slope, intercept = np.polyfit(logit(clean.astype(float)), logit(shifted.astype(float)), 1)
    expected = 1 / (1 + np.exp(-intercept - slope * logit(0.75)))
    assert plot.labels == {"mine": f"{100 * (0.45 - expected):+.1f} points"}
    assert f"{len(clean)} published networks" in plot.caption
    assert len(re.findall("<use", plot.svg)) >= len(clean)


def test_other_classes_have_no_line():
    results = [
        Result("imagenet", "top1", 0.75, "fraction", 10, {"num_classes": 8}),
        Result("imagenet-sketch", "top1", 0.45, "fraction", 10, {}),
    ]
    assert effective_plots({"toy": RunResults({}, {}, results)}) == []
