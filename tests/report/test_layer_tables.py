"""What studies measured layer by layer, in tables of the page."""

from lit_robust.core.results import Result, RunResults
from lit_robust.report.studies import detector_plots, layer_tables


def test_a_line_a_layer_and_a_column_a_run():
    def run(value):
        facets = {"measure": "detectors", "layer": "layer<1>", "category": "colour"}
        detectors = Result("concepts", "detectors_x", value, "count", 64, {}, (value - 1, value + 1), facets)
        whole = Result("concepts", "diversity", 1.0, "count", 64, {})
        return RunResults({"study": "dissection"}, {}, [detectors, whole])

    found = layer_tables({"standard": run(5.0), "robust": run(float("nan")), "plain": RunResults({}, {}, [])})
    assert found.keys() == {"dissection"}
    table = found["dissection"]
    assert "<th>standard</th><th>robust</th>" in table
    assert "<th>layer&lt;1&gt;, colour</th><td>5 (4 to 6)</td><td>undefined</td>" in table
    assert "diversity" not in table


def test_values_by_category_alone_are_shown():
    facets = {"measure": "shape_score", "category": "colour"}
    found = RunResults({"study": "ablation"}, {}, [Result("cue-conflict", "x", 2.5, "count", 9, {}, facets=facets)])
    assert "<th>colour</th><td>2.5</td>" in layer_tables({"one": found})["ablation"]


def test_a_panel_a_category_of_detectors():
    def run(*values):
        layers = {**{f"l{n}": value for n, value in enumerate(values)}, "all": 99}
        facets = [{"measure": "detectors", "layer": layer, "category": "colour"} for layer in layers]
        counts = zip(layers.values(), facets, strict=True)
        return RunResults({}, {}, [Result("concepts", "x", n, "count", 64, {}, facets=f) for n, f in counts])

    (plot,) = detector_plots({"S": run(3, 5), "R": run(1, 2, 4), "other": RunResults({}, {}, [])})
    assert list(plot.labels) == ["S", "R"]
    assert "S, colour: 3 in l0, 5 in l1; R, colour: 1 in l0, 2 in l1, 4 in l2" in plot.svg
    assert "99" not in plot.svg.partition("<desc>")[2].partition("</desc>")[0]
    assert detector_plots({"other": RunResults({}, {}, [])}) == []
