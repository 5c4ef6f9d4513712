"""The first screen: which values stand on it, which is best, and the sentence of what was found."""

from dataclasses import replace
from pathlib import Path

import pytest
from naming import named

from lit_robust.core.results import RunResults
from lit_robust.core.scorecard import main_strength, scores
from lit_robust.report.page import page
from lit_robust.report.runs import Run
from lit_robust.report.scorecard import card_columns, card_html, card_table, finding
from lit_robust.report.sections import SECTIONS, Section, section_html

FACTS = {"num_classes": 1000}


def result(metric, value, dataset="imagenet", interval=None, **protocol):
    return replace(named(dataset, metric, value, "fraction", 200, {**FACTS, **protocol}), interval=interval)


def attacked(eps, value, norm="l2", name="PGD", main=None, **more):
    protocol = {"attack": {"name": name, "norm": norm, "eps": eps}, **({"main_eps": main} if main else {})}
    return result(f"adversarial_accuracy_{norm}_eps_{eps:.4g}", value, **protocol, **more)


def run(label, *results, published=False):
    return Run(label, Path(), RunResults({}, {}, list(results)), published)


def test_the_main_eps_is_the_evaluations_own_else_the_largest():
    curve = [attacked(0.5, 0.6), attacked(1.0, 0.5), attacked(3.0, 0.2)]
    assert main_strength([curve]) == ("l2", 3.0)
    assert main_strength([[replace(r, protocol={**r.protocol, "main_eps": 1.0}) for r in curve]]) == ("l2", 1.0)
    other = [attacked(8 / 255, 0.1, "linf")]
    assert main_strength([other, curve, curve]) == ("l2", 3.0)
    assert main_strength([[result("top1", 0.7)], [attacked(0.1, 0.3, name="AutoAttack")]]) is None


def test_each_column_is_found_among_all_values():
    found = scores(
        [
            result("top1", 0.7),
            result("top1", 0.3, "stylized-imagenet"),
            result("top1", 0.05, "imagenet-a"),
            attacked(3.0, 0.2),
            attacked(1.0, 0.4),
            attacked(0.0157, 0.3, "linf", "AutoAttack"),
            result("mce", 0.8, "imagenet-c"),
            result("mean_accuracy", 0.4, "imagenet-c"),
            result("aupr", 0.17, "imagenet-o"),
            result("rms_calibration_error", 0.05),
            result("rms_calibration_error", 0.5, "imagenet-a"),
            result("shape_bias", 0.2, "cue-conflict"),
            result("adversarial_accuracy_gray_box_l2_eps_3", 0.6, attack={"norm": "l2", "eps": 3.0}),
        ],
        ("l2", 3.0),
    )
    assert {name: one.value for name, one in found.items()} == {
        **{"clean": 0.7, "adversarial": 0.2, "autoattack": 0.3, "mce": 0.8, "a": 0.05, "o_aupr": 0.17},
        **{"calibration_error": 0.05, "shape_bias": 0.2, "memory": 0.6},
    }
    # A set of one's own is the clean one where there is no other.
    assert scores([result("top1", 0.9, "pets")], None)["clean"].value == 0.9
    assert scores([result("top1", 0.1, "imagenet-a")], None).keys() == {"a"}


def test_the_best_is_by_the_columns_direction_and_never_published():
    runs = [
        run("one", result("top1", 0.7), result("mce", 0.9, "imagenet-c"), result("shape_bias", 0.9, "cue-conflict")),
        run("two", result("top1", 0.6), result("mce", 0.8, "imagenet-c"), result("shape_bias", 0.1, "cue-conflict")),
        run("theirs", result("top1", 0.9, published="A 2020"), published=True),
    ]
    best = {column.score.name: column.best for column in card_columns(runs)}
    assert best == {"clean": {"one"}, "mce": {"two"}, "shape_bias": set()}
    html = card_html(runs, card_columns(runs))
    assert html.count('<b class="value">') == 2
    assert '<b class="value">70.0</b>' in html
    assert '<b class="value">80.0</b>' in html


def test_chance_and_published_marks():
    runs = [run("one", result("top1", 0.7, decided_among=200), result("mce", 0.8, "imagenet-c"),
                result("aupr", 0.3, "imagenet-o", positives=50, negatives=150),
                result("shape_bias", 0.4, "cue-conflict", number_of_categories=16))]  # fmt: skip
    marks = {column.score.name: column.marks for column in card_columns(runs)}
    assert marks["clean"] == {"chance": 1 / 200}
    assert marks["mce"] == {"AlexNet": 1.0}
    assert marks["o_aupr"] == {"chance": 0.25}
    assert marks["shape_bias"] == {"humans": pytest.approx(0.96, abs=0.01)}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((0.1, 0.2), "two is best, at 30.0 % (95 % interval 25.0\N{EN DASH}35.0), before one at 15.0 %"),
        ((0.1, 0.26), "two and one lead, at 30.0 % and 15.0 %; their intervals overlap"),
    ],
)
def test_the_sentence_of_what_was_found(second, expected):
    runs = [
        run("one", result("top1", 0.7), attacked(3.0, 0.15, interval=second)),
        run("two", result("top1", 0.6), attacked(3.0, 0.3, interval=(0.25, 0.35))),
    ]
    expected = f"Under attack (L2, eps 3) {expected}; on clean images one is best, at 70.0 %."
    assert finding(runs, card_columns(runs)) == expected
    assert finding(runs[:1], card_columns(runs[:1])) == "one: clean 70.0 %, attacked (L2, eps 3) 15.0 %."
    assert finding([run("bare")], []) == ""


def test_warnings_stand_beneath_the_card():
    doubted = replace(result("top1", 0.7), warnings=("the network guesses",))
    runs = [run("one", doubted)]
    assert "Warning: ImageNet: the network guesses." in card_html(runs, card_columns(runs))
    assert card_table(runs, card_columns(runs)).notes[0].kind == "warning"


def test_a_section_more_is_a_function_more(monkeypatch):
    from lit_robust.report import page as module

    def mine(runs):
        return [Section("Directions <of> features", f"{len(runs)} run", "<p>none</p>", is_open=True)]

    monkeypatch.setattr(module, "SECTIONS", (*SECTIONS, mine))
    html = page([run("one", result("top1", 0.7))])
    assert section_html(mine([1])[0]) in html
    assert "Directions &lt;of&gt; features" in html
    assert html.index("How each number was measured") < html.index("Directions")
