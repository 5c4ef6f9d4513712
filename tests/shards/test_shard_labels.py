"""Where classes come from, and that a kept index is of the labels that are asked for."""

import json

import pytest
from shard_making import write_tar

from lit_robust.errors import DataError, UserError
from lit_robust.shards import ShardIndex
from lit_robust.shards.labels import LabelRule

KEYS = ["train/n01440764/n01440764_1", "n01443537_7", "xn01440764", "n014407645"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    members = []
    for number, key in enumerate(KEYS):
        content = {"label": 10 + number, "nothing": None, "word": "7", "truth": True, "low": -1}
        members += [
            (f"{key}.jpg", b"x"),
            (f"{key}.cls", str(number).encode()),
            (f"{key}.json", json.dumps(content).encode()),
        ]
    write_tar(folder / "x-val-0.tar", [*members, ("last.jpg", b"x")])
    return folder


def labels(folder, rule):
    return ShardIndex.open(folder, "val", label=rule).labels.tolist()


WORDNET = {"n01440764": 0, "n01443537": 1}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("auto", [0, 1, 2, 3, -1]),
        ("cls", [0, 1, 2, 3, -1]),
        ("json:label", [10, 11, 12, 13, -1]),
        ("json:nothing", [-1] * 5),
        ("json:absent", [-1] * 5),
        # As a word of its own: neither within a longer word nor within a longer number.
        (LabelRule("wordnet", WORDNET), [0, 1, -1, -1, -1]),
        (LabelRule("wordnet", {"n01443537": 5}), [-1, 5, -1, -1, -1]),
        (LabelRule("map", {"last": 9, KEYS[0]: 3}), [3, -1, -1, -1, 9]),
    ],
    ids=str,
)
def test_sources(folder, rule, expected):
    assert labels(folder, rule) == expected


@pytest.mark.parametrize("field", ["word", "truth", "low"])
def test_fields_that_are_no_class_numbers(folder, field):
    with pytest.raises(
        DataError, match=rf"x-val-0.tar is defective at byte \d+, '{field}' in the json of sample train/n0"
    ):
        labels(folder, f"json:{field}")


@pytest.mark.parametrize("body", [b"{", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_json_that_is_no_object(tmp_path, body):
    write_tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.json", body)])
    with pytest.raises(DataError, match="the json of sample a is no object"):
        ShardIndex.open(tmp_path, None, label="json:label")
    assert len(ShardIndex.open(tmp_path, None)) == 1


def test_the_field_that_an_info_file_names(folder):
    info = {"splits": {"val": {"filenames": ["x-val-0.tar"], "alt_label": "label"}}}
    (folder / "_info.json").write_text(json.dumps(info))
    assert labels(folder, "auto") == [10, 11, 12, 13, -1]
    assert labels(folder, "cls") == [0, 1, 2, 3, -1]
    assert labels(folder, "auto") == [10, 11, 12, 13, -1]


def test_a_kept_index_is_of_one_rule(folder):
    """Each rule after each other one, by which the index at hand was made."""
    rules = [
        ("cls", [0, 1, 2, 3, -1]),
        (LabelRule("map", {"last": 1}), [-1, -1, -1, -1, 1]),
        (LabelRule("map", {"last": 2}), [-1, -1, -1, -1, 2]),
    ]
    for rule, expected in [*rules, *rules[::-1], rules[1], rules[0], rules[2]]:
        assert labels(folder, rule) == expected


@pytest.mark.parametrize(
    ("source", "what"),
    [("class", "no label source"), ("json:", "no label source"), ("wordnet", "no table"), ("map", "no table")],
)
def test_rules_that_cannot_be(source, what):
    with pytest.raises(UserError, match=what):
        LabelRule(source)
