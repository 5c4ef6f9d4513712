"""Written shards: byte for byte, the same each time, whole or not at all."""

import errno
import io
import json
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import webdataset
from shard_making import sample

from lit_robust.core.errors import DataError, UserError
from lit_robust.shards import IndexedReader, ShardIndex, ShardWriter
from lit_robust.shards import write as write_module


def fill(folder, split="val", count=10, **arguments):
    with ShardWriter(folder, split, **arguments) as writer:
        for number in range(count):
            writer.write(f"n{number % 3}/s{number:04d}", sample(number))


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def test_round_trip(tmp_path):
    fill(tmp_path / "toy", shard_size=4, num_classes=7, categories={"b": [0, 1], "a": [2]})
    assert list(contents(tmp_path / "toy")) == ["_info.json", *(f"toy-val-000{shard}.tar" for shard in range(3))]
    index = ShardIndex.open(tmp_path / "toy", "val")
    reader = IndexedReader(index)
    for number in range(10):
        assert reader.key(number) == f"n{number % 3}/s{number:04d}"
        assert reader.image_bytes(number) == sample(number)["jpg"]
        assert index.labels[number] == number % 7
    assert (index.num_classes, index.class_names) == (7, None)
    assert index.categories == {"b": (0, 1), "a": (2,)}
    info = json.loads((tmp_path / "toy" / "_info.json").read_text())["splits"]["val"]
    assert (info["shard_lengths"], info["num_samples"], info["name"]) == ([4, 4, 2], 10, "val")


def test_peers_read_every_member(tmp_path):
    fill(tmp_path / "toy", count=3)
    shard = tmp_path / "toy" / "toy-val-0000.tar"
    read = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [{e: entry[e] for e in ("jpg", "cls", "json")} for entry in read] == [sample(n) for n in range(3)]
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.gname) for m in members} == {(0, 0, 0, 0o644, "", "")}
    assert shard.read_bytes()[257:265] == b"ustar\x0000"
    assert shard.stat().st_size % 10240 == 0


def test_the_image_comes_first(tmp_path):
    with ShardWriter(tmp_path, "val", prefix="x") as writer:
        writer.write("a", {"cls": b"0", "json": b"{}", "PNG": b"image"})
    with tarfile.open(tmp_path / "x-val-0000.tar") as tar:
        assert tar.getnames() == ["a.PNG", "a.cls", "a.json"]


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        fill(tmp_path / name, shard_size=3, prefix="toy", class_names=["ä", "b"])
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def comparable(path):
    """Return a tar's bytes with the device numbers blanked, which mean nothing for files and which GNU tar zeroes."""
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        for member in tar:
            content[member.offset + 329 : member.offset + 345] = bytes(16)
            content[member.offset + 148 : member.offset + 156] = bytes(8)
    return bytes(content)


def test_bytes_are_those_of_gnu_tar(tmp_path):
    members = {"a.jpg": b"image" * 200, "a.cls": b"3", "b.jpg": b"x", "b.cls": b"4"}
    with ShardWriter(tmp_path / "toy", "val") as writer:
        for key in "ab":
            writer.write(key, {extension: members[f"{key}.{extension}"] for extension in ("jpg", "cls")})
    for name, body in members.items():
        (tmp_path / name).write_bytes(body)
    fixed = ["--format=ustar", "--mtime=@0", "--owner=:0", "--group=:0", "--mode=0644", "--numeric-owner"]
    subprocess.run(["tar", *fixed, "-cf", "gnu.tar", *members], cwd=tmp_path, check=True)
    assert comparable(tmp_path / "toy" / "toy-val-0000.tar") == comparable(tmp_path / "gnu.tar")


@pytest.mark.parametrize("name", ["_info.json", "info.json"])
def test_other_splits_stay(tmp_path, name):
    (tmp_path / "old.tar").write_bytes(b"")
    (tmp_path / name).write_text(json.dumps({"splits": {"train": {"filenames": ["old.tar"]}}, "note": "ours"}))
    fill(tmp_path, prefix="toy")
    assert sorted(contents(tmp_path)) == sorted([name, "old.tar", "toy-val-0000.tar"])
    info = json.loads((tmp_path / name).read_text())
    assert info["splits"]["train"] == {"filenames": ["old.tar"]}
    assert info["note"] == "ours"
    assert len(ShardIndex.open(tmp_path, "val")) == 10


@pytest.mark.parametrize("split", ["val", "validation"])
def test_a_split_that_is_there_is_refused(tmp_path, split):
    fill(tmp_path, prefix="toy")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="has a split 'val' already"):
        fill(tmp_path, split, prefix="other")
    (tmp_path / "_info.json").unlink()
    with pytest.raises(UserError, match="toy-val"):
        fill(tmp_path, prefix="toy")
    assert contents(tmp_path) == {name: body for name, body in before.items() if name != "_info.json"}


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_failing_block_leaves_nothing(tmp_path, count):
    fill(tmp_path, "train", prefix="toy")
    before = contents(tmp_path)

    def interrupted():
        with ShardWriter(tmp_path, "val", shard_size=2, prefix="toy") as writer:
            for number in range(count):
                writer.write(f"s{number}", sample(number))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def failing(path, text):
        raise UserError("no space")

    monkeypatch.setattr(write_module, "write_text", failing)
    with pytest.raises(UserError, match="no space"):
        fill(tmp_path, prefix="toy", shard_size=3)
    assert contents(tmp_path) == {}


class FullDisk(io.BytesIO):
    def write(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_in_a_shard_is_one_sentence(tmp_path):
    def write_until_full():
        with ShardWriter(tmp_path, "val", prefix="x", shard_size=2) as writer:
            for number in range(3):
                writer.write(f"s{number}", sample(number))
            writer._file = FullDisk()
            writer.write("s3", sample(3))

    with pytest.raises(UserError, match="No space left"):
        write_until_full()
    assert contents(tmp_path) == {}


def test_a_killed_writers_leftovers_go_at_the_next_start(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from lit_robust.shards import ShardWriter
with ShardWriter(Path(sys.argv[1]), "val", prefix="toy") as writer:
    writer.write("s", {"jpg": b"image"})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    left, lock, mark = sorted(contents(tmp_path))
    assert lock == ".toy-val.lock"
    assert left.startswith(".toy-val-0000.tar.")
    assert mark == ".toy-val.unfinished"
    others = {".toy-train-0000.tar.x1", ".other-toy-val-0000.tar.x1", ".toy-val-0000.tar"}
    for name in others:
        (tmp_path / name).write_bytes(b"of somebody else")
    fill(tmp_path, prefix="toy")
    assert set(contents(tmp_path)) == {*others, "_info.json", "toy-val-0000.tar"}


def test_the_tars_of_a_killed_writer_are_not_read(tmp_path):
    """Whole tars under their final names, but no word of how many there should be."""
    with ShardWriter(tmp_path, "val", shard_size=1, prefix="toy") as writer:
        for key in "abc":
            writer.write(key, {"jpg": b"image", "cls": b"0"})
        with pytest.raises(DataError, match=r"toy-val-\*.tar in .* are not all written: run the command"):
            ShardIndex.open(tmp_path, "val")
    assert len(ShardIndex.open(tmp_path, "val")) == 3
    assert set(contents(tmp_path)) == {"_info.json", *(f"toy-val-000{n}.tar" for n in range(3))}


def test_splits_that_end_at_the_same_time_all_stand_in_the_info_file(tmp_path):
    names = [f"split{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: write_module.write_entry(tmp_path, name, ["x.tar"], [1], ["0" * 64], {}), names))
    assert set(json.loads((tmp_path / "_info.json").read_text())["splits"]) == set(names)


def test_no_samples(tmp_path):
    with pytest.raises(UserError, match="No samples"):
        fill(tmp_path, count=0)
    assert contents(tmp_path) == {}


def test_names_beyond_ascii_are_kept(tmp_path):
    with ShardWriter(tmp_path, "val", prefix="x") as writer:
        writer.write("Bär/größe", sample(0))
    assert ShardIndex.open(tmp_path, "val").key(0) == "Bär/größe"


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("a.b", "extension"),
        (".a", "hidden"),
        ("", "plain name"),
        ("a/", "plain name"),
        ("__meta__", "hidden"),
        ("/a", "relative"),
        ("../a", "relative"),
        ("a//b", "relative"),
        ("a\nb", "printable"),
        ("a\udc80", "printable"),
        ("x" * 300, "shorten"),
        ("first", "twice"),
    ],
)
def test_keys_that_are_refused(tmp_path, key, what):
    def write_two():
        with ShardWriter(tmp_path, "val", prefix="x") as writer:
            writer.write("first", sample(0))
            writer.write(key, sample(1))

    with pytest.raises(UserError, match=what):
        write_two()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"cls": b"0"}, "give one of"),
        ({"jpg": b"1", "png": b"1"}, "give one of"),
        ({"jpg": b"1", "JPG": b"1"}, "once"),
        ({"jpg": b""}, "empty"),
        ({"jpg": b"1", "a/b": b"1"}, "plainly"),
        ({"jpg": b"1", "cls": b"n01440764"}, "digits"),
        ({"jpg": b"1", "cls": b"-1"}, "digits"),
    ],
)
def test_members_that_are_refused(tmp_path, members, what):
    with pytest.raises(UserError, match=what), ShardWriter(tmp_path, "val", prefix="x") as writer:
        writer.write("a", members)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"shard_size": 0},
        {"split": "a/b"},
        {"split": ""},
        {"prefix": "a b"},
        {"num_classes": 3, "class_names": ["a"]},
    ],
)
def test_arguments_out_of_range(tmp_path, arguments):
    with pytest.raises(UserError):
        ShardWriter(tmp_path / "toy", **{"split": "val", **arguments})


def test_a_broken_info_file_is_not_overwritten(tmp_path):
    (tmp_path / "_info.json").write_text("{")
    with pytest.raises(DataError, match="correct"):
        fill(tmp_path)
    assert contents(tmp_path) == {"_info.json": b"{"}
