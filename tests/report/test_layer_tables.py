"""What studies measured layer by layer, in tables of the page."""

from lit_robust.core.results import Result, RunResults
from lit_robust.report.studies import layer_tables


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
