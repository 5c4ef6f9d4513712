"""Results files: what is read is what was written, and what cannot be a result is refused in a sentence."""

import json
import math
import os
from pathlib import Path

import pytest

from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults


def written(folder: Path, **entry: object) -> Path:
    folder.mkdir(exist_ok=True)
    result = {"dataset": "imagenet", "metric": "top1", "value": 0.5, "unit": "fraction", "count": 9, "protocol": {}}
    content = {"schema": 1, "run": {}, "model": {}, "results": [{**result, **entry}], "examples": []}
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("value", [0.1 + 0.2, 1.0, 0.0, math.nan])
def test_values_come_back_to_the_last_bit(tmp_path, value):
    RunResults({"seed": 3}, {}, [Result("imagenet", "top1", value, "fraction", 0, {"resize": None})]).save(tmp_path)
    found = RunResults.load(tmp_path)
    assert repr(found.results) == repr([Result("imagenet", "top1", value, "fraction", 0, {"resize": None})])
    assert found.run == {"seed": 3}


def test_interval_facets_and_warnings_come_back(tmp_path):
    facets = {"norm": "l2", "eps": 0.1 + 0.2, "mine": 3}
    given = Result("imagenet", "top1", 0.5, "fraction", 9, {}, (0.1 + 0.2, 0.7), facets, ("it never moved",))
    RunResults({}, {}, [given]).save(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == 2
    assert RunResults.load(tmp_path).results == [given]


def test_schema_1_is_read_and_its_warnings_stand_beside_the_protocol(tmp_path):
    protocol = {"attack": {"norm": "l2"}, "warnings": ["Square broke 1 of 3"]}
    (found,) = RunResults.load(written(tmp_path, protocol=protocol)).results
    assert found.warnings == ("Square broke 1 of 3",)
    assert found.protocol == {"attack": {"norm": "l2"}}
    assert (found.interval, found.facets) == (None, {})


def test_schema_1_had_axes_in_names(tmp_path):
    metric, protocol = "adversarial_accuracy_gray_box_any_step_l2_eps_0.3333", {"attack": {"norm": "l2", "eps": 1 / 3}}
    file = written(tmp_path, metric=metric, protocol=protocol) / "results.json"
    images = {"clean": "examples/imagenet-adversarial_accuracy_gray_box_any_step_l2-7-clean.png"}
    example = {"dataset": "imagenet", "kind": "adversarial", "index": 7, "images": images, "captions": {}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"examples": [example]}))
    found = RunResults.load(file)
    series = "adversarial_accuracy_gray_box_any_step_l2"
    assert found.results[0].facets == {
        "measure": "adversarial_accuracy",
        "series": series,
        "attack": "any_step",
        "threat_model": "gray-box",
        "norm": "l2",
        "eps": 1 / 3,
    }
    assert found.examples[0].series == series
    file.write_text(json.dumps(json.loads(file.read_text()) | {"examples": [example | {"images": {}}]}))
    with pytest.raises(UserError, match="has the images {}, which is not an object of at least one file"):
        RunResults.load(file)


def test_a_file_that_was_changed_is_refused(tmp_path):
    file = RunResults({"name": "a"}, {}, [Result("imagenet", "top1", 0.5, "fraction", 9, {})]).save(tmp_path)
    file.write_text(file.read_text().replace("0.5", "0.7"))
    with pytest.raises(UserError, match="was changed after it was written, as its sha256 shows"):
        RunResults.load(file)
    # Of a file without a digest, as others may write, nobody can tell.
    kept = {name: part for name, part in json.loads(file.read_text()).items() if name != "sha256"}
    file.write_text(json.dumps(kept))
    assert RunResults.load(file).results[0].value == 0.7


def test_what_no_file_of_results_is_is_one_sentence(tmp_path):
    file = tmp_path / "results.json"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        RunResults.load(tmp_path / "pipe")
    deep = json.dumps({"schema": 2, "run": {}, "model": {}, "results": [], "examples": []})
    for content in (
        b"\xff\xfe",
        b"[]",
        b"7" * 5000,
        b"[" * 100_000,
        deep.replace('"run": {}', f'"run": {{"a": {"[" * 500}{"]" * 500}}}').encode(),
        deep.replace('"run": {}', '"run": {"a": 1e999}').encode(),
        deep.replace('"results": []', '"results": [{"dataset": "imagenet"}]').encode(),
        deep.replace('"examples": []', '"examples": [{}]').encode(),
        deep.replace('"examples": []', '"examples": [], "more": 1').encode(),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"results\.json") as caught:
            RunResults.load(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [("interval", [0.5]), ("interval", [0.7, 0.5]), ("interval", [0.1, math.inf]), ("interval", [False, True]),
 ("facets", ["l2"]), ("facet 'eps'", "0.5"), ("facet 'severity'", 2.5), ("facet 'norm'", 2),
     ("facet 'mine'", [1]), ("warnings", "it never moved"), ("warnings", [3]), ("warnings", None)],
)  # fmt: skip
def test_what_is_no_interval_facets_or_warnings_is_one_sentence(tmp_path, name, said):
    part = {"facets": {name[7:-1]: said}} if name.startswith("facet ") else {name: said}
    file = written(tmp_path, **part) / "results.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(UserError, match=rf"of .*results\.json has the {name}"):
        RunResults.load(tmp_path)


def test_an_undefined_value_may_be_null_or_nan(tmp_path):
    for value in (None, math.nan):
        (found,) = RunResults.load(written(tmp_path, value=value)).results
        assert math.isnan(found.value)


@pytest.mark.parametrize("count", ["many", -1, 2.5, True, None, 10**25])
def test_a_count_that_is_none_is_one_sentence(tmp_path, count):
    with pytest.raises(UserError, match=r"test/imagenet/top1 of .*results\.json has the count") as caught:
        RunResults.load(written(tmp_path, count=count))
    assert repr(count) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dataset", "metric", "unit", "protocol"])
@pytest.mark.parametrize("said", [5, None, ["top1"]])
def test_what_is_no_word_or_protocol_is_one_sentence(tmp_path, name, said):
    with pytest.raises(UserError, match=rf"of .*results\.json has the {name}") as caught:
        RunResults.load(written(tmp_path, **{name: said}))
    assert repr(said) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run", "model"])
def test_a_run_or_a_model_that_is_none_is_one_sentence(tmp_path, name):
    file = written(tmp_path) / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: "standard"}))
    with pytest.raises(UserError, match=rf"The {name} of .*results\.json is not an object"):
        RunResults.load(tmp_path)


@pytest.mark.parametrize(
    ("metric", "unit", "low", "high"),
    [("top1", "fraction", 0, 1), ("mce", "fraction", 0, None), ("ce_fog", "fraction", 0, None),
     ("relative_mce", "fraction", None, None), ("error_consistency_humans", "fraction", -1, 1),
     ("shape_decisions", "count", 0, None), ("best_theta_top1", "theta", 0, None), ("slope", "degrees", None, None)],
)  # fmt: skip
def test_a_value_that_its_unit_cannot_have_is_one_sentence(tmp_path, metric, unit, low, high):
    entry = {"metric": metric, "unit": unit, "dataset": "imagenet-c" if metric == "ce_fog" else "imagenet"}
    for value in (-3.0, -0.1, 0.0, 1.0, 1.1, 2.0):
        run = written(tmp_path, value=value, **entry)
        if (low is None or low <= value) and (high is None or value <= high):
            assert RunResults.load(run).results[0].value == value
        else:
            with pytest.raises(
                UserError, match=rf"{metric} of .* has the value {value}, which is not a {unit} (of 0 or|from)"
            ):
                RunResults.load(run)


@pytest.mark.parametrize("value", [math.inf, -math.inf, "0.5", True, [0.5], 10**30])
def test_a_value_that_is_none_is_one_sentence(tmp_path, value):
    with pytest.raises(UserError, match=r"test/imagenet/top1 of .*results\.json has the value") as caught:
        RunResults.load(written(tmp_path, value=value))
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)
