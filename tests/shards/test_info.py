"""What info files of other software say, and what happens where they contradict the shards."""

import json
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from shard_making import entries, write_tar

from lit_robust.core.errors import DataError, UserError
from lit_robust.shards import ShardIndex
from lit_robust.shards.info import parse_info
from lit_robust.shards.listing import list_all, list_remote_split, list_split
from lit_robust.shards.merge import parse_dali
from lit_robust.shards.remote import Remote


@pytest.fixture
def folder(tmp_path):
    """Two splits of two shards, with 4 and 3 samples each."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "val"):
        write_tar(folder / f"x-{split}-0.tar", entries(4, "a/"))
        write_tar(folder / f"x-{split}-1.tar", entries(3, "b/"))
    return folder


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))


SIZES = {"x-train-0.tar": 4, "x-train-1.tar": 3, "x-val-0.tar": 4, "x-val-1.tar": 3}


def shard_list(lengths, prefix="", **more):
    shards = [{"url": prefix + file, "nsamples": length} for file, length in lengths.items()]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards, **more}


VAL = {file: length for file, length in SIZES.items() if "val" in file}
FORMS = {
    "sizes": ("sizes.json", SIZES),
    "sizes as text": ("sizes.json", {file: str(length) for file, length in SIZES.items()}),
    "list of all": ("index.json", shard_list(SIZES)),
    "list of the split, by its file": ("x-val.json", shard_list(VAL)),
    "list of the split, by its name": ("shards.json", shard_list(VAL, name="val")),
    "list with addresses": ("x-val.json", shard_list(VAL, "https://host/some/folder/")),
    "list with absolute paths": ("x-val.json", shard_list(VAL, "/some/where/")),
    "list from a folder above": ("x-val.json", shard_list(VAL, "set/")),
    "info.json that is a list": ("info.json", shard_list(SIZES)),
}


@pytest.mark.parametrize(("name", "content"), FORMS.values(), ids=FORMS)
def test_lengths_are_compared_with_the_scan(folder, name, content):
    write(folder / name, content)
    listing = list_split(folder, "val")
    assert listing.files == ("x-val-0.tar", "x-val-1.tar")
    assert listing.lengths == (4, 3)
    assert listing.info == (name,)
    assert len(ShardIndex.open(folder, "val")) == 7
    # A shard with one sample less than claimed is an error, though it is well formed.
    write_tar(folder / "x-val-1.tar", entries(2, "b/"))
    with pytest.raises(DataError, match=r"x-val-1.tar holds 2 samples, but the info file says 3"):
        ShardIndex.open(folder, "val")


@pytest.mark.parametrize(("name", "content"), FORMS.values(), ids=FORMS)
def test_a_listed_shard_that_is_missing(folder, name, content):
    write(folder / name, content)
    (folder / "x-val-1.tar").unlink()
    with pytest.raises(DataError, match=rf"1 of the 2 shards that .*{name} lists for 'val' are missing.*x-val-1.tar"):
        list_split(folder, "val")


def test_a_shard_that_is_not_listed(folder):
    write(folder / "sizes.json", SIZES)
    write_tar(folder / "x-val-2.tar", entries(1, "c/"))
    with pytest.raises(DataError, match=r"x-val-2.tar is not listed in sizes.json"):
        list_split(folder, "val")
    assert len(list_split(folder, "train").files) == 2


def test_two_info_files_that_contradict_each_other(folder):
    write(folder / "sizes.json", SIZES)
    write(folder / "index.json", shard_list({**SIZES, "x-val-1.tar": 2}))
    with pytest.raises(DataError, match=r"x-val-1.tar holds 2 \(index.json\) and 3 \(sizes.json\) samples"):
        list_split(folder, "val")


def test_img2dataset(tmp_path):
    for shard in range(2):
        write_tar(tmp_path / f"0000{shard}.tar", entries(2 + shard, f"{shard}/"))
        write(
            tmp_path / f"0000{shard}_stats.json", {"count": 9, "successes": 2 + shard, "failed_to_download": 7 - shard}
        )
    assert list_split(tmp_path, None).lengths == (2, 3)
    assert len(ShardIndex.open(tmp_path, None)) == 5
    # Its statistics are the last thing it writes: without them the shard may be half.
    (tmp_path / "00001_stats.json").unlink()
    with pytest.raises(DataError, match=r"00001.tar is not listed in 00000_stats.json"):
        list_split(tmp_path, None)


def test_a_total_of_all_samples(tmp_path):
    write_tar(tmp_path / "0.tar", entries(3))
    write(tmp_path / "__len__", "3\n")
    assert len(ShardIndex.open(tmp_path, None)) == 3
    write(tmp_path / "__len__", "4")
    with pytest.raises(DataError, match=r"hold 3 samples, but the info file says 4"):
        ShardIndex.open(tmp_path, None)
    write(tmp_path / "sizes.json", {"0.tar": 3})
    with pytest.raises(DataError, match=r"sizes.json in .* lists 3 samples, but __len__ says 4"):
        ShardIndex.open(tmp_path, None)


def test_clip_benchmarks_layout(tmp_path):
    test = tmp_path / "test"
    test.mkdir()
    for shard in range(11):
        write_tar(test / f"{shard}.tar", entries(1, f"{shard}/"))
    write(test / "nshards.txt", "11")
    listing = list_split(tmp_path, "test")
    assert listing.files == tuple(f"test/{shard}.tar" for shard in range(11))
    index = ShardIndex.open(tmp_path, "test")
    assert (len(index), index.split) == (11, "test")
    assert index.shard_path(10) == test / "10.tar"
    (test / "10.tar").unlink()
    with pytest.raises(DataError, match=r"holds 10 shards, but nshards.txt says 11"):
        list_split(tmp_path, "test")


def wds2idx(tar):
    """Write DALI's index as its tool does, from Python's own tarfile."""
    samples = {}
    with tarfile.open(tar) as members:
        for member in members:
            stem, _, extension = member.name.rpartition("/")[2].partition(".")
            key = member.name.rpartition("/")[0] + "/" + stem
            samples.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    lines = [f"v1.2 {len(samples)}", *map(" ".join, samples.values())]
    tar.with_suffix(".idx").write_text("\n".join(lines) + "\n")


def test_dalis_index(tmp_path):
    tar = write_tar(tmp_path / "0.tar", entries(5, "a folder/n 1/"))
    wds2idx(tar)
    index = ShardIndex.open(tmp_path, None)
    assert len(index) == 5
    text = tar.with_suffix(".idx").read_text()
    count, images = parse_dali("x.idx", text)
    assert (count, images) == (5, dict(zip(index.offset.tolist(), index.length.tolist(), strict=True)))
    words = text.splitlines()[2].split(" ")
    short = "v1.1 1\njpg 512 9 cls 1536 1\n"
    assert parse_dali("x.idx", short) == (1, {512: 9})
    for damaged, what in [
        (text.replace("v1.2 5", "v1.2 4"), "announces 4 samples and lists 5"),
        (text.replace("v1.2", "v9"), "not an index of DALI"),
        (text.replace("v1.2 5", "v1.2 4").rsplit("\n", 2)[0] + "\n", "holds 5 samples, but the index of DALI lists 4"),
        (text.replace(words[1], str(int(words[1]) + 512), 1), "where the index of DALI has nothing"),
        (text.replace(words[2], str(int(words[2]) + 1)), rf"where the index of DALI has {int(words[2]) + 1} bytes"),
        ("", "not an index of DALI"),
    ]:
        tar.with_suffix(".idx").write_text(damaged)
        with pytest.raises(DataError, match=what):
            ShardIndex.open(tmp_path, None)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar program")
def test_offsets_are_those_of_the_tar_program(tmp_path):
    """DALI's tool takes its offsets from `tar --block-number`: here they are, straight from there."""
    for name, body in entries(3):
        (tmp_path / name).write_bytes(body)
    names = [name for name, _ in entries(3)]
    (tmp_path / "tars").mkdir()
    subprocess.run(["tar", "-cf", "tars/0.tar", "--format=ustar", *names], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["tar", "-tR", "-f", "tars/0.tar"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    blocks = [int(line.split()[1].rstrip(":")) for line in listed.splitlines() if ".jpg" in line]
    index = ShardIndex.open(tmp_path / "tars", None)
    assert index.offset.tolist() == [block * 512 + 512 for block in blocks]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("sizes.json", {"../x.tar": 1}, "outside the folder"),
        ("sizes.json", {"/x.tar": 1}, "outside the folder"),
        ("sizes.json", {"x.tar": -1}, "whole number"),
        ("sizes.json", {"x.tar": 1.5}, "whole number"),
        ("sizes.json", ["x.tar"], "cannot be read"),
        ("x.json", shard_list({"../x.tar": 1}), "outside the folder"),
        ("x.json", shard_list({"a/../../x.tar": 1}), "outside the folder"),
        ("sizes.json", {"\ud800.tar": 1}, "holds half a letter"),
        ("x.json", shard_list({"x.tar": "1"}), "whole number"),
        ("x.json", shard_list({"s3://bucket/": 1}), "names no file"),
        ("x.json", {"shardlist": [{"url": "x.tar"}]}, "nsamples' is missing"),
        ("0_stats.json", {"successes": "1"}, "whole number"),
        ("__len__", "about 9", "whole number"),
        ("nshards.txt", "-1", "whole number"),
    ],
)
def test_malformed_info_files(tmp_path, name, content, what):
    write(tmp_path / name, content)
    (tmp_path / "x.tar").touch()
    with pytest.raises(DataError, match=rf"{name} .*{what}.*: correct or remove it"):
        list_split(tmp_path, None)


@pytest.mark.parametrize("content", ["not json", '{"a": "shardlist"}', '["shardlist"]', '{"x": {"shardlist": 1}}'])
def test_json_of_other_software_is_no_info_file(content):
    assert parse_info("folder/notes.json", content) is None


def test_bytes_of_other_software_do_no_harm(tmp_path):
    write_tar(tmp_path / "0.tar", entries(1))
    (tmp_path / "notes.json").write_bytes(b"\xff\xfe{}")
    assert len(ShardIndex.open(tmp_path, None)) == 1
    (tmp_path / "_info.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="_info.json cannot be read"):
        ShardIndex.open(tmp_path, None)


def test_every_tar_is_in_one_split(folder):
    write(folder / "_info.json", {"splits": {"val": {"filenames": ["x-val-0.tar"], "num_samples": 4}}})
    write_tar(folder / "more-0.tar", entries(1))
    found = {listing.split: listing.files for listing in list_all(folder)}
    assert found.pop(None) == ("more-0.tar",)
    assert found["train"] == ("x-train-0.tar", "x-train-1.tar")
    assert sorted(file for listing in list_all(folder) for file in listing.files) == sorted([*SIZES, "more-0.tar"])


@pytest.mark.parametrize("below", ["", "val"])
def test_splits_behind_a_url(folder, below):
    claim = {"filenames": ["x-val-0.tar"], "shard_lengths": [4], "num_classes": 7}
    remote = Remote(f"file:{folder}", "", False)
    (folder / below).mkdir(exist_ok=True)
    prefix = below and f"{below}/"
    with pytest.raises(UserError, match="has no _info.json or sizes.json"):
        list_remote_split(remote, "val")
    write(folder / below / "sizes.json", VAL)
    listing = list_remote_split(remote, "validation" if below == "" else "val")
    assert (listing.files, listing.lengths) == ((f"{prefix}x-val-0.tar", f"{prefix}x-val-1.tar"), (4, 3))
    write(folder / below / "_info.json", {"splits": {"val": claim}})
    listing = list_remote_split(remote, "val")
    assert (listing.files, listing.lengths, listing.num_classes) == ((f"{prefix}x-val-0.tar",), (4,), 7)
    write(folder / below / "_info.json", {"splits": {"val": {**claim, "alt_label": "label"}}})
    with pytest.raises(UserError, match="json field 'label'"):
        list_remote_split(remote, "val")


def test_a_changed_info_file_or_index_makes_it_anew(tmp_path):
    tar = write_tar(tmp_path / "0.tar", entries(5))
    place = tmp_path / ".lit_robust" / "all.index"
    times = []
    for change in (lambda: None, lambda: wds2idx(tar), lambda: write(tmp_path / "__len__", "5")):
        change()
        assert len(ShardIndex.open(tmp_path, None)) == 5
        times.append(place.stat().st_mtime_ns)
    assert len(np.unique(times)) == 3
