"""The LaTeX table, against a small reading of what LaTeX would make of it."""

import re

import pytest
from naming import named

from lit_robust.core.results import RunResults
from lit_robust.report import write_report
from lit_robust.report.table import compare
from lit_robust.report.text import escaped, latex


def table_of(label: str = "a_b & c") -> str:
    results = [
        named("imagenet", "top1", 0.7613, "fraction", 50_000, {"resize": 256}),
        named("imagenet", "adversarial_accuracy_linf_eps_0.01569", 0.25, "fraction", 50_000, {}),
        named("cue-conflict", "shape_bias", float("nan"), "fraction", 1200, {}),
    ]
    other = [named("imagenet", "top1", 0.5, "fraction", 512, {"resize": 232, "partial": True, "full_count": 50_000})]
    return latex(compare({label: RunResults({}, {}, results), "other": RunResults({}, {}, other)}), 11)


def test_every_line_has_a_cell_for_every_column():
    text = table_of()
    columns = re.search(r"begin\{tabular\}\{(l r*|lr*)\}", text)[1].count("r") + 1
    assert columns == 4
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().split("\n")
    assert len(body) == 2
    for line in body:
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    assert body[0].startswith(r"a\_b \& c & 76.1 & 25.0 & undefined")
    assert body[1].startswith(r"other & 50.0\textsuperscript{\dag{}} (partial) & -- & --")


def test_sets_span_their_columns_and_notes_follow():
    text = table_of()
    heads = ("ImageNet", r"ImageNet: Adversarial, L$\infty$", "Cue conflict")
    assert " & ".join(rf"\multicolumn{{1}}{{c}}{{{head}}}" for head in heads) in text
    assert r"\cmidrule(lr){2-2} \cmidrule(lr){3-3} \cmidrule(lr){4-4}" in text
    assert r"\dag{} resize 232 instead of 256 (as for a\_b \& c)." in text
    assert text.isascii()  # any engine reads it


@pytest.mark.parametrize("text", ["a_b", "50 %", "$x^2$", "{a}", "a\\b", "#1 & ~", "<|>"])
def test_nothing_special_is_left(text):
    left = re.sub(r"\\(?:[&%$#_{}]|text[a-z]+\{\})", "", escaped(text))
    assert not set(left) & set("&%$#_{}~^\\<>|")


def test_braces_are_balanced_and_the_suffix_is_known(tmp_path):
    RunResults({"name": "run{1"}, {}, [named("imagenet", "top1", 0.5, "fraction", 3, {})]).save(tmp_path / "a")
    text = write_report([tmp_path / "a"], tmp_path / "t.tex").read_text("utf-8")
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"run\{1" in text
