"""What `on_error="skip"` leaves out, what it keeps, and that it tells of every loss."""

import json
import logging
import tarfile

import pytest
from shard_making import entries, write_tar

from lit_robust.core.errors import DataError
from lit_robust.shards import IndexedReader, ShardIndex
from lit_robust.shards import index as index_module

CLAIM = {"splits": {"val": {"filenames": ["x-val-0.tar", "x-val-1.tar"], "shard_lengths": [4, 4]}}}


def members(letter):
    return [
        (f"{letter}{n}.{e}", body) for n in range(4) for e, body in (("jpg", f"{letter}{n}".encode()), ("cls", b"1"))
    ]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for shard, letter in enumerate("ab"):
        write_tar(folder / f"x-val-{shard}.tar", members(letter))
    (folder / "_info.json").write_text(json.dumps(CLAIM))
    return folder


def headers(path):
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def flip_header(path, number):
    content = bytearray(path.read_bytes())
    content[headers(path)[number] + 1] ^= 1
    path.write_bytes(content)


def cut(path, number, more):
    path.write_bytes(path.read_bytes()[: headers(path)[number] + more])


def rewrite(path, change):
    write_tar(path, change(members("a")))


FIRST = "x-val-0.tar"
DAMAGES = {
    # name: (what is done to the first shard, the samples left of it, words of its defects)
    "bad header of an image": (lambda p: flip_header(p, 4), [0], ["checksum", "sample a1 may lack members"]),
    "bad header of a label": (lambda p: flip_header(p, 5), [0, 1], ["checksum", "sample a2 may lack members"]),
    "cut at an image's header": (lambda p: cut(p, 4, 0), [0], ["end-of-archive", "sample a1 may lack members"]),
    "cut at a label's header": (lambda p: cut(p, 5, 0), [0, 1], ["end-of-archive", "sample a2 may lack members"]),
    "cut in an image": (lambda p: cut(p, 4, 513), [0, 1], ["'a2.jpg' needs 2 bytes"]),
    "cut in a label": (lambda p: cut(p, 5, 512), [0, 1], ["'a2.cls' needs 1 bytes"]),
    "no end marker": (lambda p: cut(p, 7, 1024), [0, 1, 2], ["end-of-archive", "sample a3 may lack members"]),
    "more behind the end": (
        lambda p: p.write_bytes(p.read_bytes() + p.read_bytes()),
        [0, 1, 2],
        ["more data after the end", "sample a3 may lack members"],
    ),
    "no image": (lambda p: rewrite(p, lambda m: m[:2] + m[3:]), [0, 2, 3], ["sample a1 has no image"]),
    "two images": (lambda p: rewrite(p, lambda m: [*m, ("a3.png", b"x")]), [0, 1, 2], ["jpg and png"]),
    "a member twice": (lambda p: rewrite(p, lambda m: [*m, ("a3.cls", b"1")]), [0, 1, 2], ["a second cls"]),
    "a bad label": (
        lambda p: rewrite(p, lambda m: [*m[:3], ("a1.cls", b"dog"), *m[4:]]),
        [0, 2, 3],
        ["cls of sample a1"],
    ),
    "an empty image": (lambda p: rewrite(p, lambda m: [*m[:2], ("a1.jpg", b""), *m[3:]]), [0, 2, 3], ["a1 is empty"]),
    "members apart": (lambda p: rewrite(p, lambda m: [m[0], *m[2:], m[1]]), [1, 2, 3], ["a0 do not lie together"]),
    "a sample twice": (
        lambda p: rewrite(p, lambda m: [*m[:6], *m[:2], *m[6:]]),
        [0, 1, 2, 3],
        ["a0 occurs a second time"],
    ),
    "a stray file": (lambda p: rewrite(p, lambda m: [*m, ("README", b"x")]), [0, 1, 2, 3], ["no extension"]),
    "outside": (lambda p: rewrite(p, lambda m: [*m, ("../x.jpg", b"x")]), [0, 1, 2, 3], ["leads out of the archive"]),
    "not a tar": (lambda p: p.write_bytes(b"\x1f\x8b" * 2000), [], ["compressed by gzip"]),
}


@pytest.mark.parametrize(("damage", "left", "words"), DAMAGES.values(), ids=DAMAGES)
def test_the_rest_is_kept_and_the_loss_is_told(folder, caplog, damage, left, words):
    damage(folder / FIRST)
    with pytest.raises(DataError, match=FIRST):
        ShardIndex.open(folder, "val")
    with caplog.at_level(logging.WARNING):
        index = ShardIndex.open(folder, "val", on_error="skip")
    expected = [f"a{n}" for n in left] + [f"b{n}" for n in range(4)]
    assert [index.key(n) for n in range(len(index))] == expected
    reader = IndexedReader(index)
    assert [reader.image_bytes(n).decode() for n in range(len(index))] == expected
    assert index.labels.tolist() == [1] * len(expected)
    assert len(index.defects) == len(words)
    for defect, word in zip(index.defects, words, strict=True):
        assert defect.shard == FIRST
        assert word in defect.what
        assert 0 <= defect.offset <= (folder / FIRST).stat().st_size
    assert index.lost == 4 - len(left)
    assert f"have {len(words)} defects" in caplog.text
    # With "error" the kept index of "skip" must not do.
    with pytest.raises(DataError, match=FIRST):
        ShardIndex.open(folder, "val")


def test_a_key_in_two_shards_is_kept_once(folder):
    write_tar(folder / "x-val-1.tar", [*members("b")[:6], *members("a")[:2]])
    index = ShardIndex.open(folder, "val", on_error="skip")
    assert [index.key(n) for n in range(len(index))] == ["a0", "a1", "a2", "a3", "b0", "b1", "b2"]
    assert [(one.shard, one.what) for one in index.defects] == [("x-val-1.tar", "sample a0 is in x-val-0.tar as well")]
    assert index.lost == 1


def test_a_count_that_nothing_explains_is_told_too(folder):
    write_tar(folder / FIRST, members("a")[:6])
    index = ShardIndex.open(folder, "val", on_error="skip")
    assert (len(index), index.lost) == (7, 1)
    assert "holds 3 samples, but the info file says 4" in index.defects[0].what


def test_what_is_lost_is_unknown_without_counts(folder):
    (folder / "_info.json").unlink()
    assert ShardIndex.open(folder, "val", on_error="skip").lost is None
    flip_header(folder / FIRST, 4)
    index = ShardIndex.open(folder, "val", on_error="skip")
    assert (len(index), index.lost, len(index.defects)) == (5, None, 2)


def test_which_kept_index_does(folder, monkeypatch):
    scans = []

    def counted(*args, scan=index_module.scan_shards):
        scans.append(1)
        return scan(*args)

    monkeypatch.setattr(index_module, "scan_shards", counted)
    for on_error in ("skip", "error", "skip"):
        assert not ShardIndex.open(folder, "val", on_error=on_error).defects
    assert len(scans) == 1
    flip_header(folder / FIRST, 4)
    found = [ShardIndex.open(folder, "val", on_error="skip") for _ in range(2)]
    assert len(scans) == 2
    assert found[0].defects == found[1].defects != ()
    assert (found[1].lost, found[0].digest) == (3, found[1].digest)


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "x-val-0.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match="hold no samples"):
        ShardIndex.open(tmp_path, "val", on_error="skip")


def test_half_a_sample_at_the_end_of_webdatasets_tars(tmp_path):
    """A tar cut at a header ends, for webdataset, in a sample without its label; here that sample is left out."""
    path = write_tar(tmp_path / "x-val-0.tar", entries(4))
    cut(path, 4, 0)
    index = ShardIndex.open(tmp_path, "val", on_error="skip")
    assert [index.key(n) for n in range(len(index))] == ["s0000"]
