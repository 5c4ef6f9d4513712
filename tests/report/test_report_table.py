"""Values, marks and notes of the comparison, against what was put in."""

import csv
import json
import math
from dataclasses import replace
from html import escape
from io import StringIO
from pathlib import Path

import pytest
from naming import named

from lit_robust.core.results import Result, RunResults
from lit_robust.report import write_report
from lit_robust.report.page import page
from lit_robust.report.protocol import differences, facts, usual
from lit_robust.report.runs import Run
from lit_robust.report.table import compare, compare_observers, parts
from lit_robust.report.text import csv_text, latex, markdown, terminal
from lit_robust.report.titles import metric_title, value_text


def top1(value: float = 0.7613, count: int = 50_000, **protocol: object) -> Result:
    return named("imagenet", "top1", value, "fraction", count, {"resize": 256, **protocol})


def attacked(eps: float, value: float = 0.5, norm: str = "l2", **attack: object) -> Result:
    settings = {"name": "PGD", "norm": norm, "eps": eps, "step_size": eps / 2, "steps": 3, **attack}
    return named(
        "imagenet", f"adversarial_accuracy_{norm}_eps_{eps:.4g}", value, "fraction", 50_000, {"attack": settings}
    )


def runs(*results: list[Result]) -> dict[str, RunResults]:
    return {f"run{number}": RunResults({}, {}, part) for number, part in enumerate(results)}


def test_columns_stand_in_reading_order_whatever_the_files_order():
    bias = named("cue-conflict", "shape_bias", 0.2207, "fraction", 1280, {})
    shape = named("cue-conflict", "shape_decisions", 1162, "count", 1280, {})
    category = named("cue-conflict", "shape_bias_cat", 0.5, "fraction", 1280, {})
    own = named("zoo", "top1", 0.1, "fraction", 5, {})
    table = compare(runs([own, shape, category, bias, attacked(10), attacked(2), attacked(0.5), top1()]))
    assert [(column.dataset, column.title, column.unit) for column in table.columns] == [
        ("ImageNet", "Top-1 accuracy", "%"),
        ("ImageNet", "Adversarial, L2, eps 0.5", "%"),
        ("ImageNet", "Adversarial, L2, eps 2", "%"),
        ("ImageNet", "Adversarial, L2, eps 10", "%"),
        ("Cue conflict", "Shape bias", "%"),
        ("Cue conflict", "Shape decisions", "count"),
        ("zoo", "Top-1 accuracy", "%"),
    ]
    texts = [cell.text for cell in table.rows["run0"] if cell]
    assert texts == ["76.1", "50.0", "50.0", "50.0", "22.1", "1,162", "10.0"]
    assert table.notes == []


def test_linf_eps_is_written_as_people_write_it():
    assert metric_title(attacked(4 / 255, norm="linf")) == "Adversarial, L\N{INFINITY}, eps 4/255"
    assert metric_title(attacked(0.03, norm="linf")) == "Adversarial, L\N{INFINITY}, eps 0.03"


def test_a_value_measured_otherwise_gets_the_dagger_the_majority_does_not():
    table = compare(runs([top1(0.1, resize=232)], [top1(0.2)], [top1(0.3)]))
    assert [row[0].notes for row in table.rows.values()] == [(0,), (), ()]
    assert table.notes[0].text == "resize 232 instead of 256 (as for run1)."
    assert table.mark(0) == "\N{DAGGER}"


def test_one_note_for_a_whole_sweep_and_another_for_another_difference():
    usual_run = [top1(), attacked(1), attacked(2)]
    other = [top1(count=1000), attacked(1, steps=20), attacked(2, steps=20)]
    table = compare(runs(usual_run, usual_run, other))
    assert [cell.notes for cell in table.rows["run2"]] == [(0,), (1,), (1,)]
    assert [table.mark(0), table.mark(1)] == ["\N{DAGGER}1", "\N{DAGGER}2"]
    assert table.notes[0].text == "images 1000 instead of 50000 (as for run0)."
    assert table.notes[1].text == "attack steps 20 instead of 3 (as for run0)."


def test_another_step_size_is_seen_though_it_scales_with_eps():
    assert differences(attacked(1, step_size=0.25), attacked(1)) == "attack step size over eps 0.25 instead of 0.5"


def test_a_long_setting_is_named_not_quoted():
    assert differences(top1(shards_sha256="a" * 64), top1(shards_sha256="b" * 64)) == "another shards sha256"


def test_an_unstated_setting_is_a_difference():
    assert differences(top1(crop=224), top1()) == "crop 224 instead of not stated"


def test_the_first_is_the_reference_where_there_is_no_majority():
    first, second = top1(), top1(resize=232)
    assert usual([first, second]) is first
    assert usual([second, first]) is second


def test_partial_is_marked_and_is_no_difference_by_itself():
    table = compare(runs([top1()], [top1(count=512, partial=True, full_count=50_000)]))
    assert [cell.partial for row in table.rows.values() for cell in row] == [False, True]
    assert table.notes == []
    text = markdown(table)
    assert "| run1 | 76.1 (partial) |" in text
    assert "- partial: measured on a part of the test set only" in text
    assert "images" not in facts(top1(count=512, partial=True, full_count=50_000))


def anomalies(positives: int, negatives: int, **protocol: object) -> Result:
    told = {"positives": positives, "negatives": negatives, "in_distribution": {"count": negatives}, **protocol}
    return named("imagenet-o", "aupr", 0.9, "fraction", positives + negatives, told)


def test_a_partial_value_is_no_reference_and_its_counts_are_no_difference():
    part, whole = anomalies(60, 8, partial=True), anomalies(163, 37)
    table = compare(runs([part], [whole]))
    assert [(cell.partial, cell.notes) for row in table.rows.values() for cell in row] == [(True, ()), (False, ())]
    assert usual([part, whole]) is whole
    assert usual([part, part, whole]) is whole
    # What is no count stays a difference, and so do the counts of complete values.
    assert differences(anomalies(60, 8, partial=True, score="energy"), whole) == "score energy instead of not stated"
    assert differences(anomalies(163, 30), whole).count("30 instead of 37") == 2


def consistency(*observers: str) -> list[Result]:
    return [named("cue-conflict", f"error_consistency_{observer}", 0.4, "fraction", 432, {}) for observer in observers]


def test_few_observers_stand_among_the_others_and_many_by_themselves():
    few = runs([top1(), *consistency("alexnet", "vgg16", "humans")])
    titles = ["Top-1 accuracy", *(f"Error consistency, {name}" for name in ("alexnet", "humans", "vgg16"))]
    assert [column.title for column in compare(few).columns] == titles
    assert compare_observers(few).columns == []
    names = [f"subject_{number:02}" for number in range(1, 8)]
    # Seven over both runs are many, though none of them has so many.
    many = runs([top1(), *consistency(*names[:4], "humans")], consistency(*names[3:]))
    assert [column.title for column in compare(many).columns] == ["Top-1 accuracy", "Error consistency, humans"]
    apart = compare_observers(many)
    assert [column.title for column in apart.columns] == [f"Error consistency, subject {n:02}" for n in range(1, 8)]
    assert [cell is None for cell in apart.rows["run1"]] == [True] * 3 + [False] * 4


def test_many_observers_are_the_table_where_there_is_nothing_else():
    alone = runs(consistency(*(f"network_{number}" for number in range(9))))
    assert len(compare(alone).columns) == 9
    assert compare_observers(alone).columns == []


def test_a_restricted_test_set_is_said():
    restricted = named("cue-conflict", "shape_bias", 0.5, "fraction", 448, {"restricted": "448 of 1280 images"})
    text = markdown(compare(runs([restricted])))
    assert "| run0 | 50.0 \N{DOUBLE DAGGER} |" in text
    assert "- \N{DOUBLE DAGGER} Cue conflict: 448 of 1280 images." in text


def test_a_warning_stands_beside_its_value_wherever_it_is_shown():
    doubted = replace(top1(0.99), warnings=("3 of 9 images had no gradient & never moved.",))
    found = runs([doubted], [top1(0.5)])
    table, sentence = compare(found), "Warning: ImageNet: 3 of 9 images had no gradient & never moved."
    assert [row[0].notes for row in table.rows.values()] == [(0,), ()]
    shown = terminal(table)
    assert "99.0 !" in shown
    assert f"! {sentence}" in shown.splitlines()
    assert "99.0 !" in markdown(table)
    tex = latex(table, 8)
    assert r"99.0\textsuperscript{!}" in tex
    assert r"\footnotesize ! Warning: ImageNet: 3 of 9 images had no gradient \& never moved." in tex
    html = page([Run(label, Path(), each) for label, each in found.items()])
    assert "99.0</span><sup>!</sup>" in html
    assert f"<sup>!</sup> {escape(sentence)}" in html
    assert "warning: 3 of 9 images" in html.split("How each number was measured")[1]
    rows = list(csv.DictReader(StringIO(csv_text(found))))
    assert [row["warnings"] for row in rows] == ["3 of 9 images had no gradient & never moved.", ""]


def test_csv_has_intervals_and_facets():
    told = replace(top1(0.5), interval=(0.1 + 0.2, 0.7), facets={"norm": "l2"})
    (row,) = csv.DictReader(StringIO(csv_text(runs([told]))))
    assert (float(row["low"]), float(row["high"]), json.loads(row["facets"])) == (0.1 + 0.2, 0.7, {"norm": "l2"})


def test_a_published_value_is_no_reference_and_says_where_it_is_from():
    theirs = top1(0.761, count=50_000, published="A 2020", remark="by hand")
    theirs = named("imagenet", "top1", 0.761, "fraction", 50_000, {**theirs.protocol, "resize": 232})
    table = compare(runs([theirs], [theirs], [top1(0.5, crop=224)]))
    # Two of three are published; the one that was measured is the column's measure all the same.
    assert [row[0].notes for row in table.rows.values()] == [(0, 1), (0, 1), ()]
    assert (
        table.notes[0].text == "resize 232 instead of 256 (as for run2)."
    )  # and nothing of the crop, which it leaves open
    assert table.notes[1].text == "Published: A 2020 (resize 232); by hand."
    assert [table.mark(0), table.mark(1)] == ["\N{DAGGER}", "\N{SECTION SIGN}"]


def test_sets_of_other_classes_have_columns_of_their_own():
    top5 = named("imagenet", "top5", 0.95, "fraction", 50_000, {"num_classes": 8})
    table = compare(runs([top1(0.9, num_classes=8), top5], [top1(0.7, num_classes=1000)], [top1(0.6)]))
    heads = [(column.dataset, column.title) for column in table.columns]
    assert heads == [
        ("ImageNet", "Top-1 accuracy"),
        ("imagenet of 8 classes", "Top-1 accuracy"),
        ("imagenet of 8 classes", "Top-5 accuracy"),
    ]
    texts = [[cell.text if cell else None for cell in row] for row in table.rows.values()]
    assert texts == [[None, "90.0", "95.0"], ["70.0", None, None], ["60.0", None, None]]


def test_corruptions_stand_in_the_table_as_means_alone():
    found = [
        named("imagenet-c", metric, 0.5, "fraction", 50_000, {})
        for metric in ("mce", "relative_mce", "mean_accuracy", "ce_fog", "top1_fog", "top1_gaussian_noise_3")
    ]
    assert [column.title for column in compare(runs(found)).columns] == ["mCE", "Relative mCE", "Mean accuracy"]


def test_an_undefined_bias_and_a_missing_value():
    bias = named("cue-conflict", "shape_bias", math.nan, "fraction", 1280, {})
    text = markdown(compare(runs([bias], [top1()])))
    assert "| run0 | \N{EN DASH} | undefined |" in text
    assert "| run1 | 76.1 | \N{EN DASH} |" in text


def test_many_columns_are_split_between_groups_and_none_is_lost():
    sweep = [attacked(eps) for eps in (0.25, 0.5, 1, 2, 3)]
    bias = named("cue-conflict", "shape_bias", 0.5, "fraction", 1280, {})
    table = compare(runs([top1(), *sweep, bias]))
    assert [column.group for column in table.columns] == [
        "ImageNet",
        *["ImageNet: Adversarial, L2"] * 5,
        "Cue conflict",
    ]
    assert table.columns[2].head == "eps 0.5"
    assert parts(table.columns, 11) == [[0, 1, 2, 3, 4, 5, 6]]
    assert parts(table.columns, 5) == [[0], [1, 2, 3, 4, 5], [6]]
    assert parts(table.columns, 3) == [[0], [1, 2, 3], [4, 5], [6]]


def test_two_attacks_with_one_name_have_a_column_each():
    table = compare(runs([attacked(2, 0.5), attacked(2, 0.4, steps=20)]))
    assert [cell.text for cell in table.rows["run0"]] == ["50.0", "40.0"]


def test_markdown_keeps_strange_names_inside_their_cells():
    table = compare({"a|b\n*c* <d>": RunResults({}, {}, [top1()])})
    lines = markdown(table).splitlines()
    assert lines[2] == r"| a\|b \*c\* \<d\> | 76.1 |"
    assert len(lines) == 3


def test_csv_gives_every_value_back_exactly():
    results = [top1(0.1 + 0.2), attacked(4 / 255, 1 / 3, "linf"), top1(math.nan, partial=True)]
    results[2] = named("cue-conflict", "shape_bias_cat", math.nan, "fraction", 12, {"partial": True})
    found = {'quo"te, and\nline': RunResults({}, {}, results)}
    rows = list(csv.DictReader(StringIO(csv_text(found))))
    assert len(rows) == 3
    for row, result in zip(rows, results, strict=True):
        value = math.nan if row["value"] == "" else float(row["value"])
        read = named(row["dataset"], row["metric"], value, row["unit"], int(row["count"]), json.loads(row["protocol"]))
        assert repr(read) == repr(result)  # equal to the last bit; NaN is not equal to itself
        assert row["run"] == 'quo"te, and\nline'
    assert [row["partial"] for row in rows] == ["", "", "yes"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0, "fraction", "0.0"), (1.0, "fraction", "100.0"), (0.99996, "fraction", "100.0"), (123456, "count", "123,456"),
     (0.767, "ratio", "0.767"), (math.inf, "fraction", "undefined")],
)  # fmt: skip
def test_values_for_readers(value, unit, text):
    assert value_text(value, unit) == text


def test_no_word_of_the_csv_is_a_formula():
    told = named("imagenet", "top1", -0.25, "fraction", 9, {"published": "=cmd|' /C calc'!A0"})
    (row,) = csv.DictReader(StringIO(csv_text({"@run": RunResults({}, {}, [told])})))
    assert (row["run"], row["published"]) == ("'@run", "'=cmd|' /C calc'!A0")
    assert row["value"] == "-0.25"  # a number stays one


def test_names_reach_a_terminal_escaped(tmp_path):
    table = compare({"a\nb\x1b[2J\ud800": RunResults({}, {}, [top1(restricted="c\x07")])})
    assert all(line.isprintable() for line in terminal(table).split("\n"))
    assert r"a\nb\x1b[2J\ud800" in terminal(table)
    RunResults({"name": "a\udc80"}, {}, [top1()]).save(tmp_path)
    for suffix in ("html", "md", "tex", "csv"):
        assert r"a\udc80" in write_report([tmp_path], tmp_path / f"r.{suffix}").read_text("utf-8").replace(
            r"\textbackslash{}", "\\"
        ).replace(r"\\", "\\")
