"""Heat maps and corruption errors: what stands in them against what was put in."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from naming import named

from lit_robust.core.results import Result, RunResults
from lit_robust.report.plots.corruptions import (
    corrupted_sets,
    corruption_error_plots,
    corruption_values,
    heat_maps,
    in_order,
)
from lit_robust.report.table import compare

NAMES = ("gaussian_noise", "fog", "saturate")


def result(metric: str, value: float, dataset: str = "imagenet-c", **protocol: object) -> Result:
    return named(dataset, metric, value, "fraction", 50_000, protocol)


def measured(offset: float = 0.0, **protocol: object) -> RunResults:
    """Accuracies of 3 corruptions x 5 severities: 0.05 less a severity, 0.01 less a corruption."""
    cells = {(c, s): 0.9 - offset - 0.05 * s - 0.01 * i for i, c in enumerate(NAMES) for s in range(1, 6)}
    results = [result(f"top1_{c}_{s}", value, **protocol) for (c, s), value in cells.items()]
    results += [result(f"top1_{c}", sum(cells[c, s] for s in range(1, 6)) / 5) for c in NAMES]
    results += [result(f"ce_{c}", 0.7 + offset) for c in NAMES[:2]]
    return RunResults({}, {}, [*results[::-1], result("mce", 0.7 + offset)])


def test_a_heat_map_has_a_cell_a_corruption_and_severity():
    tree = ElementTree.fromstring(f"<div>{heat_maps({'mine': measured()}, 'imagenet-c')}</div>")
    rows = tree.findall(".//tbody/tr")
    assert ["".join(row[0].itertext()) for row in rows] == ["gaussian noise", "fog", "saturate"]
    for place, row in enumerate(rows):
        shown = [float(cell.text) for cell in row[1:]]
        exact = [90 - 5 * s - place for s in range(1, 6)]
        assert shown == [*exact, sum(exact) / 5]
        tints = [float(re.search(r"--share: ([\d.]+)%", cell.attrib["style"])[1]) for cell in row[1:]]
        assert tints == shown
    # Noise, weather and extras are groups of their own.
    assert [row.attrib.get("class") for row in rows] == ["first", "first", "first"]


def test_missing_and_partial_cells_are_said():
    found = measured(partial=True)
    found.results = [r for r in found.results if r.metric != "top1_fog_3"]
    html = heat_maps({"mine": found, "other": RunResults({}, {}, [result("mce", 0.7)])}, "imagenet-c")
    assert html.count('class="missing"') == 1
    assert html.count(">partial<") == 1
    assert html.count("<figure") == 1  # the run without cells has none
    assert heat_maps({"bare": RunResults({}, {}, [])}, "imagenet-c") == ""


def test_both_benchmarks_are_kept_apart():
    like = RunResults({}, {}, [result("top1_fog_1", 0.5, "imagenet-c-like")])
    for dataset, own, other in (("imagenet-c", "a", "b"), ("imagenet-c-like", "b", "a")):
        html = heat_maps({"a": measured(), "b": like}, dataset)
        assert f">{own}</span>" in html
        assert f">{other}</span>" not in html
    assert not corruption_values(like, "imagenet-c").cells


def test_a_benchmark_of_any_name_has_figures_under_its_own():
    """A set is known by its cells; those of one name are one figure, whoever lists them."""
    found = measured(cells=["fog/1"])
    found.results = [replace(r, dataset='my "fog" & snow', protocol={"cells": ["fog/1"]}) for r in found.results]
    runs = {"mine": found, "published": measured()}
    assert corrupted_sets(runs) == {"imagenet-c": "ImageNet-C", 'my "fog" & snow': 'my "fog" & snow'}
    plots = corruption_error_plots(runs)
    assert [plot.dataset for plot in plots] == ["ImageNet-C", 'my "fog" & snow']
    assert {plot.title for plot in plots} == {"Corruption errors"}
    ids = [
        set(re.findall(r'\bid="([^"]+)"', ElementTree.tostring(ElementTree.fromstring(p.svg)).decode())) for p in plots
    ]
    assert not ids[0] & ids[1]
    assert {column.title for column in compare(runs).columns} == {"mCE"}


@pytest.mark.parametrize("count", [1, 2, 12])
def test_errors_are_bars_for_few_and_marks_for_many(count):
    runs = {f"run{n}": measured(0.01 * n) for n in range(count)}
    (plot,) = corruption_error_plots(runs)
    ElementTree.fromstring(plot.svg)
    assert list(plot.labels.values()) == [f"mCE {70 + n:.1f} %" for n in range(count)]
    assert "run0: mean (mCE) 70.0 %, gaussian_noise 70.0 %, fog 70.0 %" in plot.svg


def test_bars_are_as_long_as_their_values():
    found = RunResults({}, {}, [result("ce_fog", 0.5), result("ce_snow", 1.0)])
    (plot,) = corruption_error_plots({"mine": found})
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ [^"]*" clip-path[^>]*fill: #0072b2', plot.svg)
    snow, fog = (float(right) - float(left) for left, right in bars)
    assert fog / snow == pytest.approx(0.5, abs=1e-4)  # six decimals in the SVG


def test_corruptions_stand_in_the_benchmarks_order():
    assert in_order(["saturate", "my_rain", "jpeg_compression", "snow", "glass_blur", "gaussian_noise"]) == [
        "gaussian_noise",
        "glass_blur",
        "snow",
        "jpeg_compression",
        "saturate",
        "my_rain",
    ]
