"""Which tars a split is made of."""

import json

import pytest

from lit_robust.core.errors import DataError, UserError
from lit_robust.shards import ShardIndex
from lit_robust.shards.info import read_info
from lit_robust.shards.listing import list_all, list_split
from lit_robust.shards.remote import Remote


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_info(folder, splits, name="_info.json", **top):
    (folder / name).write_text(json.dumps({"splits": splits, **top}))


@pytest.mark.parametrize("name", ["_info.json", "info.json"])
@pytest.mark.parametrize(("asked", "written"), [("val", "validation"), ("validation", "val"), ("val", "val")])
def test_the_info_file_decides(tmp_path, name, asked, written):
    make(tmp_path, "b.tar", "a.tar", "other-val-0.tar")
    entry = {"name": written, "filenames": ["b.tar", "a.tar"], "shard_lengths": [3, 4], "num_samples": 7}
    write_info(tmp_path, {written: {**entry, "class_names": ["x", "y"]}}, name, num_classes=2)
    listing = list_split(tmp_path, asked)
    assert (listing.split, listing.files, listing.lengths, listing.count) == (written, ("b.tar", "a.tar"), (3, 4), 7)
    assert (listing.num_classes, listing.class_names, listing.categories) == (2, ("x", "y"), None)


def test_names_decide_without_an_info_file(tmp_path):
    make(tmp_path, "retrieval-train-0.tar", "retrieval-val-1.tar", "retrieval-val-0.tar", "notes.txt")
    assert list_split(tmp_path, "val").files == ("retrieval-val-0.tar", "retrieval-val-1.tar")
    assert list_split(tmp_path, "validation").files == ("retrieval-val-0.tar", "retrieval-val-1.tar")
    assert len(list_split(tmp_path, None).files) == 3
    with pytest.raises(UserError, match="no split 'test'"):
        list_split(tmp_path, "test")


def test_a_split_that_the_info_file_lacks(tmp_path):
    make(tmp_path, "x-train-0.tar", "x-val-0.tar")
    write_info(tmp_path, {"train": {"filenames": ["x-train-0.tar"]}})
    assert list_split(tmp_path, None).split == "train"
    assert list_split(tmp_path, "val").files == ("x-val-0.tar",)
    with pytest.raises(UserError, match="which holds train"):
        list_split(tmp_path, "test")


def test_a_gap_between_numbered_shards(tmp_path):
    make(tmp_path, "imagenet1k-val-00.tar", "imagenet1k-val-01.tar", "imagenet1k-val-03.tar")
    with pytest.raises(DataError, match="Shard number 2 is missing"):
        list_split(tmp_path, "val")


def test_missing_folder_and_shards(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        list_split(tmp_path / "none", "val")
    write_info(tmp_path, {"val": {"filenames": ["a.tar", "b.tar"]}})
    make(tmp_path, "a.tar")
    with pytest.raises(DataError, match=r"1 of the 2 shards .* the first is b.tar"):
        list_split(tmp_path, "val")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({}, "filenames"),
        ({"filenames": []}, "empty"),
        ({"filenames": "a.tar"}, "not a list"),
        ({"filenames": ["a.tar", "a.tar"]}, "twice"),
        ({"filenames": ["../a.tar"]}, "outside"),
        ({"filenames": ["/a.tar"]}, "outside"),
        ({"filenames": ["a.tar"], "shard_lengths": [1, 2]}, "2 shard_lengths for 1"),
        ({"filenames": ["a.tar"], "shard_lengths": [1.5]}, "whole number"),
        ({"filenames": ["a.tar"], "shard_lengths": [3], "num_samples": 4}, "sum to 3"),
        ({"filenames": ["a.tar"], "alt_label": 7}, "not a list of names"),
        ({"filenames": ["a.tar"], "class_names": "ab"}, "not a list"),
        ({"filenames": ["a.tar"], "categories": [1]}, "malformed"),
        (["a.tar"], "malformed"),
    ],
)
def test_malformed_entries(tmp_path, entry, what):
    make(tmp_path, "a.tar")
    write_info(tmp_path, {"val": entry})
    with pytest.raises(DataError, match=what):
        list_split(tmp_path, "val")


@pytest.mark.parametrize("content", ["{", "[]", '{"splits": []}', '"splits"'])
def test_malformed_info_files(tmp_path, content):
    (tmp_path / "_info.json").write_text(content)
    with pytest.raises(DataError, match="correct or remove it"):
        list_split(tmp_path, "val")


def test_the_last_word_of_a_name_is_the_split(tmp_path):
    make(tmp_path, "train-val-000.tar", "test-of-train-000.tar", "x-mini-val-000.tar")
    assert list_split(tmp_path, "val").files == ("train-val-000.tar", "x-mini-val-000.tar")
    assert list_split(tmp_path, "train").files == ("test-of-train-000.tar",)
    assert list_split(tmp_path, "mini-val").files == ("x-mini-val-000.tar",)
    with pytest.raises(UserError, match="There is no split 'test'"):
        list_split(tmp_path, "test")
    listed = {listing.split: listing.files for listing in list_all(tmp_path)}
    assert listed == {split: list_split(tmp_path, split).files for split in ("train", "val")}


@pytest.mark.parametrize(
    "content",
    [
        {"author": "someone"},
        {"splits": ["train", "val"]},
        {"splits": {"train": {"name": "train", "num_examples": 5}}},  # As Hugging Face's datasets describe themselves.
        ["a", "list"],
    ],
)
def test_an_info_file_of_another_program_is_no_obstacle(tmp_path, content):
    make(tmp_path, "x-val-0.tar")
    (tmp_path / "info.json").write_text(json.dumps(content))
    assert list_split(tmp_path, "val").files == ("x-val-0.tar",)
    assert read_info(tmp_path) == (tmp_path / "_info.json", {})
    # That name is the suite's own and timm's.
    (tmp_path / "_info.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="_info.json.*correct or remove it"):
        list_split(tmp_path, "val")


def test_no_sentence_speaks_of_a_split_that_nobody_named(tmp_path):
    with pytest.raises(UserError, match=f"There are no shards in {tmp_path}: check the path"):
        list_split(tmp_path, None)
    (tmp_path / "x.tar").write_bytes(bytes(10240))
    with pytest.raises(DataError, match=f"The shards in {tmp_path} hold no samples"):
        ShardIndex.open(tmp_path, None)
    (tmp_path / "sizes.json").write_text(json.dumps({"x.tar": 0, "y.tar": 3}))
    with pytest.raises(DataError, match=r"1 of the 2 shards that .*sizes\.json lists are missing"):
        list_split(tmp_path, None)
    (tmp_path / "sizes.json").write_text(json.dumps({"x-val.tar": 0}))
    with pytest.raises(DataError, match="lists for 'val' are missing"):
        list_split(tmp_path, "val")


def test_a_terminal_gets_no_control_sequences_from_info_files(tmp_path):
    (tmp_path / "sizes.json").write_text(json.dumps({"x-val\x1b[2J\n.tar": 1}))
    with pytest.raises(DataError, match=r"the first is x-val\\x1b\[2J\\n\.tar: copy"):
        list_split(tmp_path, "val")
    assert Remote(f"file:{tmp_path}", "", False).shown("x\x1b[2J.tar").endswith("/x\\x1b[2J.tar")
    (tmp_path / "sizes.json").unlink()
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"val": {"filenames": "\x1b[2J\n.tar"}}}))
    with pytest.raises(DataError, match=r"malformed \(\\x1b\[2J\\n\.tar is not a list of names\)"):
        list_split(tmp_path, "val")
