"""Where classes come from, and that a kept index is of the labels that are asked for."""

import json

import pytest
from shard_making import write_tar

from lit_robust.core.errors import DataError, UserError
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
        ("json:low", [-1] * 5),  # What timm leaves out as unknown.
        # As a word of its own: neither within a longer word nor within a longer number.
        (LabelRule("wordnet", WORDNET), [0, 1, -1, -1, -1]),
        (LabelRule("wordnet", {"n01443537": 5}), [-1, 5, -1, -1, -1]),
        (LabelRule("map", {"last": 9, KEYS[0]: 3}), [3, -1, -1, -1, 9]),
    ],
    ids=str,
)
def test_sources(folder, rule, expected):
    assert labels(folder, rule) == expected


@pytest.mark.parametrize("field", ["word", "truth"])
def test_fields_that_are_no_class_numbers(folder, field):
    with pytest.raises(
        DataError, match=rf"x-val-0.tar is defective at byte \d+, '{field}' in the json of sample train/n0"
    ):
        labels(folder, f"json:{field}")


@pytest.mark.parametrize("body", [b"{", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_json_that_is_no_object(tmp_path, body):
    write_tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.json", body)])
    with pytest.raises(DataError, match="the json of sample a is not an object"):
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


def numbered_from_one(folder, count, **info):
    members = [(f"s{n}.{end}", body) for n in range(count) for end, body in (("jpg", b"x"), ("cls", b"%d" % (n + 1)))]
    write_tar(folder / "x-val-0.tar", members)
    claim = {"filenames": ["x-val-0.tar"], "num_samples": count, "num_classes": count, **info}
    (folder / "_info.json").write_text(json.dumps({"splits": {"val": claim}}))


def test_classes_that_are_numbered_from_one(tmp_path):
    numbered_from_one(tmp_path, 5)
    sentence = (
        r"s4 in .*x-val-0.tar at byte \d+ has class 5, but 5 classes are numbered from 0 to 4: subtract 1 from every"
    )
    with pytest.raises(DataError, match=sentence):
        labels(tmp_path, "auto")
    index = ShardIndex.open(tmp_path, "val", on_error="skip")
    assert (index.labels.tolist(), index.lost) == ([1, 2, 3, 4], 1)
    assert [index.key(number) for number in range(4)] == ["s0", "s1", "s2", "s3"]
    assert "samples with a class beyond the 5 of the info file: 1, the highest is s4" in index.defects[0].what
    # Of labels that the info file does not speak of, its count says nothing.
    assert labels(tmp_path, LabelRule("map", {f"s{n}": 100 + n for n in range(5)})) == [100, 101, 102, 103, 104]


def test_a_class_far_beyond_the_set(tmp_path):
    numbered_from_one(tmp_path, 5, num_classes=2)
    with pytest.raises(DataError, match="s4 .* has class 5, but the set has 2: write the class as its number from 0"):
        labels(tmp_path, "auto")
