"""Results files: what is read is what was written, and what cannot be a result is refused in a sentence."""

import json
import math
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


@pytest.mark.parametrize("value", [0.1 + 0.2, -0.3, 0.0, math.nan])
def test_values_come_back_to_the_last_bit(tmp_path, value):
    RunResults({"seed": 3}, {}, [Result("imagenet", "top1", value, "fraction", 0, {"resize": None})]).save(tmp_path)
    found = RunResults.load(tmp_path)
    assert repr(found.results) == repr([Result("imagenet", "top1", value, "fraction", 0, {"resize": None})])
    assert found.run == {"seed": 3}


def test_interval_facets_and_warnings_come_back(tmp_path):
    facets = {"norm": "l2", "eps": 0.1 + 0.2, "layer": None}
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


@pytest.mark.parametrize(
    ("name", "said"),
    [("interval", [0.5]), ("interval", [0.7, 0.5]), ("interval", [0.1, math.inf]), ("interval", [False, True]),
     ("facets", ["l2"]), ("warnings", "it never moved"), ("warnings", [3]), ("warnings", None)],
)  # fmt: skip
def test_what_is_no_interval_facets_or_warnings_is_one_sentence(tmp_path, name, said):
    file = written(tmp_path, **{name: said}) / "results.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(UserError, match=rf"of .*results\.json has the {name}"):
        RunResults.load(tmp_path)


def test_an_undefined_value_may_be_null_or_nan(tmp_path):
    for value in (None, math.nan):
        (found,) = RunResults.load(written(tmp_path, value=value)).results
        assert math.isnan(found.value)


@pytest.mark.parametrize("count", ["many", -1, 2.5, True, None])
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
    with pytest.raises(UserError, match=r"The run or the model of .*results\.json is no object"):
        RunResults.load(tmp_path)


@pytest.mark.parametrize("value", [math.inf, -math.inf, "0.5", True, [0.5]])
def test_a_value_that_is_none_is_one_sentence(tmp_path, value):
    with pytest.raises(UserError, match=r"test/imagenet/top1 of .*results\.json has the value") as caught:
        RunResults.load(written(tmp_path, value=value))
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)
