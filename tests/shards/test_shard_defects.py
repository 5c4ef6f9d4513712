"""Every defect is an error that names shard and byte; no damage loses a sample in silence."""

import json
import tarfile

import numpy as np
import pytest
from shard_making import entries, sample, write_tar

from lit_robust.core.errors import DataError
from lit_robust.shards import ShardIndex
from lit_robust.shards.scan import scan_shard


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
