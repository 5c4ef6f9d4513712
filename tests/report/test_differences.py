"""The section of differences: what is compared with what, and which differences are told from zero."""

from pathlib import Path

from lit_robust.core.results import Result, RunResults
from lit_robust.report.differences import difference_table
from lit_robust.report.runs import Run


def run(label, *values):
    told = {"num_classes": 1000, "less": {"run": "a<b", "top1": 0.5}}
    found = [Result(name, "top1_difference", value, "fraction", 200, told, ends) for name, value, ends in values]
    return Run(label, Path(), RunResults({}, {}, found))


def test_a_row_a_set_and_a_column_a_run():
    near, far = ("imagenet", 0.01, (-0.02, 0.04)), ("imagenet-a", -0.2, (-0.3, -0.1))
    html = difference_table([run("first"), run("second", near, far), run("third", near)])
    assert html.count("<tr>") == 3
    assert "first" not in html
    assert html.count('<span class="value">+1.0</span>') == 2
    assert '<b class="value">\N{MINUS SIGN}20.0</b><small class="interval">\N{MINUS SIGN}30.0' in html
    assert "<td>a&lt;b <small>50.0 %</small></td>" in html
    assert html.count('class="missing"') == 1
    assert difference_table([run("first")]) == ""
