"""Tars as others write them are read unmodified: samples, bytes and labels against Python's own tarfile."""

import json
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from shard_making import encoded, entries, pixels, sample, write_tar

from lit_robust.shards import IndexedReader, ShardIndex


def check(index, expected):
    """Compare an index and what its reader gives with ``{key: members}``."""
    reader = IndexedReader(index)
    assert [reader.key(number) for number in range(len(reader))] == list(expected)
    for number, members in enumerate(expected.values()):
        assert reader.image_bytes(number) == members[index.image_extension(number)]
        assert index.labels[number] == int(members["cls"])


def test_shards_of_webdataset(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "imagenet-train-%06d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"n01/{number:05d}", **sample(number)})
    index = ShardIndex.open(tmp_path, "train")
    assert index.shards == tuple(f"imagenet-train-{shard:06d}.tar" for shard in range(3))
    assert index.shard.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    check(index, {f"n01/{number:05d}": sample(number) for number in range(10)})


def test_webdataset_sees_the_same_samples(tmp_path):
    junk = [("._s0000.jpg", b"junk"), (".DS_Store", b"junk"), ("__meta__", b"junk")]
    path = write_tar(tmp_path / "a-val-0.tar", [*junk, *entries(5, "a.b/"), ("c.seg.png", b"x"), ("c.jpg", b"y")])
    theirs = [entry["__key__"] for entry in webdataset.WebDataset(str(path), shardshuffle=False)]
    index = ShardIndex.open(tmp_path, "val")
    assert [index.key(number) for number in range(len(index))] == theirs
    assert IndexedReader(index).image_bytes(5) == b"y"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "n01440764/", "d" * 90 + "/" + "e" * 60 + "/"])
def test_formats_of_tarfile_and_long_names(tmp_path, form, folder):
    write_tar(tmp_path / "x-val-0.tar", entries(3, folder), form)
    check(ShardIndex.open(tmp_path, "val"), {f"{folder}s{n:04d}": sample(n) for n in range(3)})


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_beyond_ustar(tmp_path, form):
    folder = "ö" * 120 + "/" + "f" * 200 + "/"
    write_tar(tmp_path / "x-val-0.tar", entries(3, folder), form, mtime=1.5 if form == tarfile.PAX_FORMAT else 0)
    check(ShardIndex.open(tmp_path, "val"), {f"{folder}s{n:04d}": sample(n) for n in range(3)})


def test_global_pax_headers(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by hand"}):
        pass
    head = (tmp_path / "x.tar").read_bytes()[:1024]
    assert head[156:157] == b"g"
    body = write_tar(tmp_path / "y.tar", entries(2)).read_bytes()
    (tmp_path / "x.tar").unlink()
    (tmp_path / "y.tar").write_bytes(head + body)
    check(ShardIndex.open(tmp_path, None), {f"s{n:04d}": sample(n) for n in range(2)})


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "posix", "v7"])
def test_the_tar_program(tmp_path, form):
    source = tmp_path / "source"
    for name, body in entries(3, "n0/"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(body)
    tars = tmp_path / "tars"
    tars.mkdir()
    command = ["tar", f"--format={form}", "--sort=name", "-cf", str(tars / "x.tar"), "-C", str(source), "."]
    subprocess.run(command, check=True)
    # Sorted by name, cls comes before jpg; and there are entries for `./` and `./n0/`.
    check(ShardIndex.open(tars, None), {f"n0/s{n:04d}": sample(n) for n in range(3)})


def test_times_of_incremental_gnu_tars_are_no_names(tmp_path):
    # GNU keeps them where ustar has a name's first part; Python's tarfile makes folders of them.
    source = tmp_path / "source"
    source.mkdir()
    for name, body in entries(2):
        (source / name).write_bytes(body)
    names = [name for name, _ in entries(2)]
    tars = tmp_path / "tars"
    tars.mkdir()
    command = ["tar", "--format=gnu", "--incremental", "-cf", str(tars / "x.tar"), "-C", str(source), *names]
    subprocess.run(command, check=True)
    assert (tars / "x.tar").read_bytes()[345:346] != b"\0"
    check(ShardIndex.open(tars, None), {f"s{n:04d}": sample(n) for n in range(2)})


def test_image_extensions_in_any_case(tmp_path):
    members = []
    kinds = {"JPG": "JPEG", "Jpeg": "JPEG", "PNG": "PNG", "webp": "WEBP"}
    for number, (extension, kind) in enumerate(kinds.items()):
        members += [(f"s{number}.{extension}", encoded(pixels(number), kind)), (f"s{number}.txt", b"words")]
    write_tar(tmp_path / "0000.tar", members)
    index = ShardIndex.open(tmp_path, None)
    assert [index.image_extension(number) for number in range(4)] == ["jpg", "jpeg", "png", "webp"]
    assert index.labels.tolist() == [-1] * 4
    assert [IndexedReader(index).image_bytes(n) for n in range(4)] == [members[2 * n][1] for n in range(4)]


def test_no_samples_lost_among_many(tmp_path):
    """A brute-force count over shards of many sizes of body, so that headers fall at many places of the window."""
    random = np.random.default_rng(0)
    expected = {}
    for shard in range(3):
        members = []
        for number in range(100):
            key, body = f"k{shard}-{number}", random.bytes(int(random.integers(1, 20_000)))
            members += [(f"{key}.jpg", body), (f"{key}.cls", str(number).encode() + b"\n")]
            expected[key] = {"jpg": body, "cls": str(number)}
        write_tar(tmp_path / f"a-val-{shard}.tar", members)
    info = {"splits": {"validation": {"filenames": [f"a-val-{shard}.tar" for shard in range(3)]}}}
    (tmp_path / "info.json").write_text(json.dumps(info))
    check(ShardIndex.open(tmp_path, "val"), expected)
