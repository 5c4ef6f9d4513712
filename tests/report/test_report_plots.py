"""Plots: their data against the results, their SVG against an XML parser."""

import math
import re
from xml.etree import ElementTree

import matplotlib
import pytest
from naming import named

from lit_robust.core.results import Result, RunResults
from lit_robust.report.plots.accuracy import accuracy_plots, curves
from lit_robust.report.plots.corruptions import corruption_error_plots
from lit_robust.report.plots.drawing import mark_swatch, run_style, swatch
from lit_robust.report.plots.precision_recall import precision_recall_plots
from lit_robust.report.plots.shape_bias import biases, shape_bias_plots


def attacked(eps: float, value: float, steps: int = 3, norm: str = "l2") -> Result:
    settings = {"name": "PGD", "norm": norm, "eps": eps, "step_size": eps / 2, "steps": steps}
    return named("imagenet", f"adversarial_accuracy_{norm}_eps_{eps:.4g}", value, "fraction", 10, {"attack": settings})


def clean(value: float) -> Result:
    return named("imagenet", "top1", value, "fraction", 10, {})


def bias(value: float, name: str = "shape_bias") -> Result:
    return named("cue-conflict", name, value, "fraction", 1280, {})


def runs(*results: list[Result]) -> dict[str, RunResults]:
    return {f"run{number}": RunResults({}, {}, part) for number, part in enumerate(results)}


def test_a_curve_starts_at_the_clean_accuracy_and_follows_eps():
    (found,) = curves(runs([attacked(2, 0.1), attacked(0.5, 0.4), clean(0.7)], [attacked(1, 0.3)]))
    assert {label: [(p.eps, p.accuracy) for p in line] for label, line in found.lines.items()} == {
        "run0": [(0.0, 0.7), (0.5, 0.4), (2, 0.1)],
        "run1": [(1, 0.3)],
    }


def test_norms_and_attacks_do_not_share_axes():
    found = curves(
        runs([clean(0.7), attacked(1, 0.3), attacked(4 / 255, 0.2, norm="linf")], [attacked(1, 0.2, steps=20)])
    )
    assert [(curve.norm, list(curve.lines)) for curve in found] == [
        ("l2", ["run0"]),
        ("linf", ["run0"]),
        ("l2", ["run1"]),
    ]
    assert "3 steps of 0.5 eps" in found[0].attack
    assert "20 steps of 0.5 eps" in found[2].attack


def test_every_plot_says_what_is_partial():
    part = {"partial": True, "full_count": 50_000}
    curve = named("imagenet-o", "aupr", 0.5, "fraction", 9, {**part, "precision_recall": [[0.5, 1.0], [1.0, 0.5]]})
    plain = {key: value for key, value in curve.protocol.items() if key not in part}
    eps = attacked(1, 0.3)
    found = [
        named(eps.dataset, eps.metric, eps.value, eps.unit, eps.count, {**eps.protocol, **part}),
        named("cue-conflict", "shape_bias", 0.5, "fraction", 9, part),
        named("imagenet-c", "ce_fog", 0.5, "fraction", 9, part),
        curve,
    ]
    whole = named("imagenet-o", "aupr", 0.5, "fraction", 9, plain)
    compared = runs(found, [whole])
    drawn = (accuracy_plots, shape_bias_plots, corruption_error_plots, precision_recall_plots)
    for plot in (plot for draw in drawn for plot in draw(compared)):
        assert "partial: measured on a part of the test set only." in plot.caption, plot.title
    (lines,) = precision_recall_plots(compared)
    assert lines.labels == {"run0": "AUPR 50.0 %, partial", "run1": "AUPR 50.0 %"}
    (lines,) = precision_recall_plots(runs([whole]))
    assert "partial" not in lines.caption


def test_threat_models_do_not_share_axes_though_the_attack_is_one():
    attack = {"name": "PGD", "norm": "l2", "eps": 1.0, "step_size": 0.5, "steps": 3}
    gray = named(
        "imagenet",
        "adversarial_accuracy_gray_box_l2_eps_1",
        0.6,
        "fraction",
        10,
        {"attack": attack, "threat_model": "gray-box"},
    )
    found = curves(runs([clean(0.7), attacked(1, 0.3), gray]))
    assert [(c.threat, [(p.eps, p.accuracy) for p in c.lines["run0"]]) for c in found] == [
        ("white-box", [(0.0, 0.7), (1, 0.3)]),
        ("gray-box", [(0.0, 0.7), (1.0, 0.6)]),
    ]


def test_published_accuracies_are_marks_that_say_what_is_different():
    protocol = {
        "attack": {"name": "PGD", "norm": "l2", "eps": 3.0, "step_size": 0.5, "steps": 7},
        "published": "A 2020",
    }
    other = named("imagenet", "adversarial_accuracy_l2_eps_3", 0.36, "fraction", 10, protocol)
    (found,) = curves({**runs([clean(0.7), attacked(1, 0.3)]), "theirs": RunResults({}, {}, [other])})
    assert list(found.lines) == ["run0"]
    assert [(p.eps, p.accuracy) for p in found.marks["theirs"]] == [(3.0, 0.36)]
    assert found.remarks["theirs"].startswith("published; attack steps 7 instead of 3")
    assert "eps 3 instead" not in found.remarks["theirs"]
    # A panel is for what was measured: alone, published values draw none.
    assert curves({"theirs": RunResults({}, {}, [other])}) == []


def test_a_kept_precision_recall_curve_is_drawn():
    curve = [[1.0, 0.2], [0.5, 0.4], [0.0, 1.0]]
    aupr = named("imagenet-o", "aupr", 0.3, "fraction", 12_000, {"precision_recall": curve})
    (plot,) = precision_recall_plots(runs([aupr], [clean(0.7)]))
    assert plot.labels == {"run0": "AUPR 30.0 %"}
    ElementTree.fromstring(plot.svg)
    assert precision_recall_plots(runs([clean(0.7)])) == []


def test_undefined_values_are_left_out_and_said():
    (plot,) = shape_bias_plots(runs([bias(0.2), bias(math.nan, "shape_bias_cat")]))
    assert "missing" in plot.caption
    assert "cat undefined shape" in plot.svg
    assert list(biases(runs([bias(0.2), bias(0.3, "shape_bias_cat")])["run0"], "cue-conflict")) == ["all", "cat"]


def test_a_run_whose_bias_is_undefined_still_draws():
    (plot,) = shape_bias_plots(runs([bias(math.nan)]))
    assert plot.labels == {"run0": "undefined shape"}


@pytest.fixture(scope="module")
def marks() -> list[tuple[float, float]]:
    """Where the marks of a plot with known biases stand: x of category marks, from 0 (left) to 1."""
    values = {"all": 0.25, "cat": 1.0, "dog": 0.0, "owl": 0.5}
    results = [bias(v, "shape_bias" if k == "all" else f"shape_bias_{k}") for k, v in values.items()]
    (plot,) = shape_bias_plots(runs(results))
    places = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: #0072b2', plot.svg)
    return [(float(x), float(y)) for x, y in places]


def test_shape_stands_left_and_texture_right(marks):
    # As in figure 4 of Geirhos et al. 2019: x is the fraction of texture decisions, 1 - bias.
    (_, y_all), (x_cat, y_cat), (x_dog, _), (x_owl, _) = marks
    assert x_cat < x_owl < x_dog
    # SVG coordinates are written with six decimals.
    assert (x_cat + x_dog) / 2 == pytest.approx(x_owl, abs=1e-4)
    assert marks[0][0] == pytest.approx(x_cat + 0.75 * (x_dog - x_cat), abs=1e-4)
    assert y_all < y_cat  # the first row is on top


def test_plots_are_valid_named_and_apart():
    everything = [
        clean(0.7),
        attacked(1, 0.3),
        attacked(4 / 255, 0.2, norm="linf"),
        bias(0.2),
        bias(0.4, "shape_bias_a<b$^$"),
    ]
    found = runs(*[everything] * 12)
    plots = [*accuracy_plots(found), *shape_bias_plots(found)]
    assert len(plots) == 3
    ids: list[str] = []
    for plot in plots:
        tree = ElementTree.fromstring(plot.svg)
        assert tree.attrib["role"] == "img"
        labelled = tree.attrib["aria-labelledby"].split()
        own = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
        assert set(labelled) <= set(own)
        ids += own
        assert list(plot.labels) == list(found)
        assert "currentColor" in plot.svg
        assert "#010203" not in plot.svg
        text = " ".join("".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text"))
        assert "eps" in text or "a<b" in text  # text stays text
    assert len(ids) == len(set(ids))


def test_plots_are_the_same_each_time_and_leave_no_settings():
    found = runs([clean(0.7), attacked(1, 0.3)])
    before = dict(matplotlib.rcParams)
    first = accuracy_plots(found)
    assert accuracy_plots(found) == first
    assert dict(matplotlib.rcParams) == before


def test_partial_marks_are_hollow():
    whole = accuracy_plots(runs([clean(0.7), attacked(1, 0.3)]))[0]
    part = named("imagenet", "top1", 0.7, "fraction", 5, {"partial": True, "full_count": 10})
    hollow = accuracy_plots(runs([part, attacked(1, 0.3)]))[0]
    assert "hollow" in hollow.caption
    assert "hollow" not in whole.caption
    assert hollow.svg.count("var(--paper") > whole.svg.count("var(--paper")


def test_many_runs_look_different():
    assert len({run_style(number) for number in range(42)}) == 42
    assert "<svg" in swatch(11)
    line = run_style(0)[0]
    assert swatch(0).count(line) > mark_swatch(0).count(line) > 0
