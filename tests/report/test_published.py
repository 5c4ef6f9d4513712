"""Published values: against each other, against totals told elsewhere, and how they join the runs."""

from pathlib import Path

import pytest
from naming import named

from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults
from lit_robust.report.published import published_names, published_results, published_runs
from lit_robust.report.runs import Run
from lit_robust.report.table import compare


def run(*results: Result) -> Run:
    return Run("mine", Path(), RunResults({}, {}, list(results)))


def values(name: str, dataset: str, metric: str) -> list[Result]:
    return [r for r in published_results(name) if (r.dataset, r.metric) == (dataset, metric)]


def value(name: str, dataset: str, metric: str) -> float:
    (found,) = values(name, dataset, metric)
    return found.value


def test_every_network_has_values_that_can_be():
    for name in published_names():
        results = published_results(name)
        assert results, name
        for result in results:
            assert result.protocol["published"]
            assert result.count > 0
            # Relative mCE and CE may pass 1; a share may not.
            limit = 1.5 if "ce" in result.metric else 1280 if result.unit == "count" else 1.0
            assert 0 <= result.value <= limit, (name, result)


# shape, texture, other, right without conflict: published totals of 1,200 images in conflict and 80 without
@pytest.mark.parametrize(
    ("name", "totals"),
    [
        ("squeezenet1_1", (133, 597, 470, 57)),
        ("alexnet", (182, 537, 481, 65)),
        ("vgg16", (84, 828, 288, 68)),
        ("resnet50-sin", (586, 141, 473, 63)),
        ("densenet121-sin", (618, 130, 452, 56)),
        ("googlenet-caffe", (228, 503, 469, 69)),
    ],
)
def test_counts_of_decisions_are_the_published_ones(name, totals):
    shape, texture, other, same = totals
    assert shape + texture + other == 1200
    assert value(name, "cue-conflict", "shape_decisions") == shape
    assert value(name, "cue-conflict", "texture_decisions") == texture
    assert value(name, "cue-conflict", "other_decisions") == other
    assert value(name, "cue-conflict", "accuracy_without_conflict") == same / 80
    biases = [r.value for r in values(name, "cue-conflict", "shape_bias")]
    assert shape / (shape + texture) in biases


def test_humans_are_the_ten_observers_together():
    # 9,236 shape and 398 texture decisions
    assert value("humans", "cue-conflict", "shape_bias") == pytest.approx(0.9587, abs=5e-5)
    categories = [r for r in published_results("humans") if r.metric.startswith("shape_bias_")]
    assert len(categories) == 16
    assert sum(r.protocol["shape_decisions"] for r in categories) == 9236
    assert sum(r.protocol["texture_decisions"] for r in categories) == 398


def test_resnets_corruption_errors_follow_from_both_networks_accuracies():
    """Two sources against each other: CE is a ratio of errors, and mCE the mean of 15 of them."""
    theirs = {r.metric: r.value for r in published_results("resnet50") if "game-of-noise" in r.protocol["published"]}
    corruptions = [metric.removeprefix("ce_") for metric in theirs if metric.startswith("ce_")]
    assert len(corruptions) == 15
    for name in corruptions:
        alexnet = 1 - value("alexnet", "imagenet-c", f"top1_{name}")
        severities = [value("alexnet", "imagenet-c", f"top1_{name}_{s}") for s in range(1, 6)]
        assert sum(severities) / 5 == pytest.approx(1 - alexnet, abs=2e-6)  # six decimals are kept
        # Accuracies are printed to 0.01 %: an error of up to 5e-5 over AlexNet's error, at least 0.56.
        assert (1 - theirs[f"top1_{name}"]) / alexnet == pytest.approx(theirs[f"ce_{name}"], abs=1.5e-4)
    mean = sum(theirs[f"ce_{name}"] for name in corruptions) / 15
    assert mean == pytest.approx(theirs["mce"], abs=1e-4)
    accuracy = sum(theirs[f"top1_{name}"] for name in corruptions) / 15
    assert accuracy == pytest.approx(theirs["mean_accuracy"], abs=1e-4)


def test_the_cache_papers_errors_average_to_its_mean():
    for name in ("resnet50-orhan", "shape-resnet50-orhan", "cache-fc-resnet50", "cache-fc-shape-resnet50"):
        errors = [r.value for r in published_results(name) if r.metric.startswith("ce_")]
        assert len(errors) == 15
        # Whole percents: their mean may be off by half of one.
        assert sum(errors) / 15 == pytest.approx(value(name, "imagenet-c", "mce"), abs=5e-3)


def test_the_value_of_the_nearest_protocol_stands_beside_the_runs():
    for resize, count, mce in ((None, 50_000, 0.767), (256, 50_000, 0.782), (None, 5_000, 0.7638)):
        settings = {"resize": resize, "images_a_cell": count, **({"crop": 224} if resize else {})}
        mine = run(named("imagenet-c", "mce", 0.5, "fraction", 75 * count, settings))
        (row,) = published_runs(["resnet50"], [mine])
        assert [r.value for r in row.found.results if r.metric == "mce"] == [mce]


def test_the_standard_protocol_stands_where_no_run_measured_the_set():
    mine = run(named("imagenet", "top1", 0.5, "fraction", 200, {"resize": 256}))
    rows = published_runs(["squeezenet1_1", "resnet152", "resnet50", "alexnet"], [mine])
    values = {row.label: {r.metric: r.value for r in row.found.results} for row in rows}
    assert values["AlexNet"]["mce"] == values["AlexNet"]["relative_mce"] == 1.0
    assert values["ResNet-50"]["mce"] == 0.767
    table = compare({each.label: each.found for each in [mine, *rows]})
    (place,) = (number for number, column in enumerate(table.columns) if column.title == "mCE")
    # Of the others nobody published it: their resized files differ, and the standard does not, though both are two.
    kinds = {label: [table.notes[n].kind for n in row[place].notes] for label, row in table.rows.items() if row[place]}
    assert kinds == {
        "SqueezeNet 1.1": ["difference", "source"],
        "ResNet-152": ["difference", "source"],
        "ResNet-50": ["source"],
        "AlexNet": ["source"],
    }


def test_timms_values_have_the_protocol_of_its_networks():
    """Against the library, which evaluates a network as its own configuration says."""
    timm = pytest.importorskip("timm")
    for name, entry in (("deit-small", "deit_small_patch16_224"), ("deit-base", "deit_base_patch16_224")):
        (found,) = (r for r in values(name, "imagenet-a", "top1") if "pytorch-image-models" in r.protocol["published"])
        cfg = timm.get_pretrained_cfg(entry)
        crop = cfg.input_size[-1]
        assert found.protocol["crop"] == crop
        assert found.protocol["resize"] == int(crop / cfg.crop_pct)  # timm rounds down
        assert found.protocol["interpolation"] == cfg.interpolation


def test_all_stands_alone():
    with pytest.raises(UserError, match="all stands alone") as caught:
        published_runs(["all", "resnet50"], [run()])
    assert "\n" not in str(caught.value)


def test_a_published_attack_joins_the_column_of_an_evaluation_with_a_name():
    attack = {"name": "CachePaperAttack", "norm": "linf", "eps": 0.06, "steps": 10, "target": "random"}
    metric = "adversarial_accuracy_gray_box_mine_linf_eps_0.06"
    mine = run(named("imagenet", metric, 0.2, "fraction", 9, {"attack": attack, "threat_model": "gray-box"}))
    (row,) = published_runs(["cache-resnet50"], [mine])
    assert {r.metric: r.value for r in row.found.results}[metric] == 0.17
    # An attack of another kind is no neighbour of it.
    plain = {**attack, "name": "PGD"}
    other = run(named("imagenet", metric, 0.2, "fraction", 9, {"attack": plain, "threat_model": "gray-box"}))
    (row,) = published_runs(["cache-resnet50"], [other])
    assert metric not in {r.metric for r in row.found.results}


def test_all_takes_those_that_share_a_column_and_no_toy():
    mine = run(named("imagenet-o", "aupr", 0.2, "fraction", 12_000, {}))
    rows = published_runs(["all"], [mine])
    assert 5 < len(rows) < 15
    # Networks of ImageNet-A's authors have accuracies, too; but no run here has such a column.
    assert all([r.metric for r in row.found.results] == ["aupr"] for row in rows)
    toy = run(named("imagenet", "top1", 0.9, "fraction", 512, {"num_classes": 8}))
    assert published_runs(["all"], [toy]) == []


def test_an_unknown_name_is_one_sentence_with_a_hint():
    with pytest.raises(UserError, match=r"'resnet-50'.*did you mean resnet50") as caught:
        published_runs(["resnet-50"], [run()])
    assert "\n" not in str(caught.value)


def test_a_published_name_that_a_run_has_gets_a_number():
    mine = Run("ResNet-50", Path(), RunResults({}, {}, []))
    (row,) = published_runs(["resnet50"], [mine])
    assert row.label != "ResNet-50"
    assert row.published
