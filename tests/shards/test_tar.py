"""Tars as others write them are read unmodified; damaged ones are refused with shard and byte."""

import json
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from shard_making import encoded, entries, pixels, sample, write_tar

from lit_robust.core.errors import DataError
from lit_robust.shards import IndexedReader, ShardIndex
from lit_robust.shards.scan import scan_shard


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


def headers(path):
    """Return the place of each member's header, by Python's own tarfile."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def refused(path, offset, what):
    with pytest.raises(DataError) as caught:
        scan_shard(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} is defective at byte {offset}, "), sentence
    assert what in sentence
    assert "\n" not in sentence


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "x-val-0.tar", entries(4))


def test_a_flipped_header(shard):
    offset = headers(shard)[5]
    content = bytearray(shard.read_bytes())
    content[offset + 1] ^= 1
    shard.write_bytes(content)
    refused(shard, offset, "checksum")


def test_a_zeroed_header_in_the_middle(shard):
    # Python's tarfile takes this for the end of the archive.
    offset = headers(shard)[5]
    content = bytearray(shard.read_bytes())
    content[offset : offset + 512] = bytes(512)
    shard.write_bytes(content)
    with tarfile.open(shard) as tar:
        assert len(tar.getmembers()) == 5
    refused(shard, offset + 512, "after the end-of-archive marker")


def test_cut_at_a_header(shard):
    offset = headers(shard)[6]
    shard.write_bytes(shard.read_bytes()[:offset])
    refused(shard, offset, "without an end-of-archive marker")


def test_cut_in_a_body(shard):
    offset = headers(shard)[6]
    shard.write_bytes(shard.read_bytes()[: offset + 600])
    refused(shard, offset, f"the file ends at byte {offset + 600}")


def test_cut_in_the_end_marker(shard):
    content = shard.read_bytes().rstrip(b"\0")
    end = -(-len(content) // 512) * 512
    shard.write_bytes(content + bytes(end - len(content) + 512))
    refused(shard, end, "marker is cut")


def test_two_tars_in_one_file(shard, tmp_path):
    end = len(shard.read_bytes())
    more = write_tar(tmp_path / "more.tar", [("z.jpg", b"1")]).read_bytes()
    shard.write_bytes(shard.read_bytes() + more)
    refused(shard, end, "after the end-of-archive marker")


def test_a_tail_that_was_never_copied(tmp_path):
    path = write_tar(tmp_path / "a.tar", entries(600))
    offset = headers(path)[30]
    content = path.read_bytes()
    assert len(content) - offset > 1 << 20
    path.write_bytes(content[:offset] + bytes(len(content) - offset))
    refused(path, offset, "should hold members")


@pytest.mark.parametrize(
    ("members", "place", "what"),
    [
        ([("a.jpg", b"1"), ("b.jpg", b"1"), ("a.cls", b"0")], 2, "do not lie together"),
        ([("a.jpg", b"1"), ("b.jpg", b"1"), ("a.jpg", b"1")], 2, "occurs a second time"),
        ([("a.jpg", b"1"), ("a.jpg", b"1")], 1, "a second jpg"),
        ([("a.jpg", b"1"), ("a.JPG", b"1")], 1, "a second jpg"),
        ([("a.jpg", b"1"), ("a.png", b"1")], 0, "jpg and png"),
        ([("a.jpg", b"1"), ("b.cls", b"1")], 1, "sample b has no image, only cls"),
        ([("a.jpg", b"1"), ("README", b"1")], 1, "no extension"),
        ([("a.jpg", b"")], 0, "empty"),
        ([("a.jpg", b"1"), ("/b.jpg", b"1")], 1, "leads out of the archive"),
        ([("a.jpg", b"1"), ("c/../../b.jpg", b"1")], 1, "leads out of the archive"),
    ],
)
def test_samples_that_are_not_whole(tmp_path, members, place, what):
    path = write_tar(tmp_path / "a.tar", members)
    refused(path, headers(path)[place], what)


@pytest.mark.parametrize("label", [b"", b"-1", b"1.0", b"1_0", b"n01440764", b"+3", b"9" * 19, b"1 2"])
def test_labels_that_are_no_class_numbers(tmp_path, label):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.cls", label)])
    refused(path, headers(path)[1] + 512, "not a class number")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Z", "type b'Z'"),
    ],
)
def test_members_that_are_no_files(tmp_path, kind, what):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "b.jpg"
        tar.addfile(info)
    refused(path, 0, what)


def test_no_tar_at_all(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"")
    refused(path, 0, "without an end-of-archive marker")
    path.write_bytes(b"no tar" * 1000)
    refused(path, 0, "octal")


def test_a_key_in_two_shards(tmp_path):
    write_tar(tmp_path / "x-val-0.tar", entries(3))
    write_tar(tmp_path / "x-val-1.tar", entries(1))
    with pytest.raises(DataError, match=r"s0000 is in .*x-val-0.tar and again in .*x-val-1.tar"):
        ShardIndex.open(tmp_path, "val")


@pytest.mark.parametrize("entry", [{"shard_lengths": [5]}, {"num_samples": 5}])
def test_counts_of_the_info_file(shard, entry):
    info = {"splits": {"val": {"filenames": [shard.name], **entry}}}
    (shard.parent / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"4 samples.*says 5"):
        ShardIndex.open(shard.parent, "val")


def outcome(path):
    """Return what a scan found, without the file's size and time, or None where it was refused."""
    try:
        scan = scan_shard(path)
    except DataError:
        return None
    return scan.keys, scan.offset.tolist(), scan.length.tolist(), scan.extension.tolist(), scan.label.tolist()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_truncation(tmp_path, form):
    path = write_tar(tmp_path / "a.tar", entries(3, "ö" * 70 + "/" if form != tarfile.USTAR_FORMAT else ""), form)
    whole, content = outcome(path), path.read_bytes()
    end = -(-len(content.rstrip(b"\0")) // 512) * 512 + 1024
    cuts = {*range(0, len(content), 97), *(place + d for place in range(0, len(content), 512) for d in (-1, 0, 1))}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(content)):
        path.write_bytes(content[:cut])
        # Only padding after the two blocks of zeros may be missing.
        assert outcome(path) == (whole if cut >= end else None), cut


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_flipped_bytes_of_headers(tmp_path, form):
    path = write_tar(tmp_path / "a.tar", entries(3, "ö" * 70 + "/" if form != tarfile.USTAR_FORMAT else ""), form)
    whole, content = outcome(path), path.read_bytes()
    random = np.random.default_rng(0)
    # Headers of long-name records begin their block like any header; tarfile does not list them.
    blocks = [place for place in range(0, len(content), 512) if content[place + 257 : place + 262] == b"ustar"]
    assert len(blocks) >= 9
    refusals = 0
    for place in blocks:
        for at in random.choice(512, 40, replace=False):
            damaged = bytearray(content)
            damaged[place + at] ^= int(random.integers(1, 256))
            path.write_bytes(damaged)
            found = outcome(path)
            assert found in (None, whole), (place, at)
            refusals += found is None
    # All but a few flips in the spelling of the checksum itself are seen.
    assert refusals > 0.97 * 40 * len(blocks)


def test_flipped_bytes_anywhere_never_change_the_count(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"s{n}.{e}", b) for n in range(3) for e, b in sample(n).items()])
    whole, content = outcome(path), path.read_bytes()
    random = np.random.default_rng(1)
    for at in random.integers(0, len(content), 800):
        damaged = bytearray(content)
        damaged[at] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        found = outcome(path)
        # Nothing guards a body: a flip may turn one class number into another, and no more.
        assert found is None or found[:4] == whole[:4]
