"""What a scan passes over and counts, and what people's folders hold next to whole shards."""

import bz2
import gzip
import json
import logging
import lzma
import os
import tarfile

import pytest
from shard_making import entries, sample, write_tar

from lit_robust.cli import main
from lit_robust.core.errors import DataError, UserError
from lit_robust.shards import IndexedReader, ShardIndex, ShardWriter
from lit_robust.shards import index as index_module
from lit_robust.shards.labels import CLS, LabelRule
from lit_robust.shards.listing import list_remote_split
from lit_robust.shards.remote import Remote
from lit_robust.shards.verify import verify_shards

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
    assert f"defects: {len(words)}, samples left out: " in caplog.text
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


def fill(folder, count=40):
    with ShardWriter(folder, "val", prefix="x") as writer:
        for number in range(count):
            writer.write(f"s{number:03d}", sample(number))
    return folder / "x-val-0000.tar"


def test_two_writers_of_one_split_do_not_mix(tmp_path):
    second = pytest.raises(UserError, match="Another run writes x-val-\\*.tar .* wait for it, or end it")
    with ShardWriter(tmp_path, "val", prefix="x") as writer:
        writer.write("a", sample(0))
        with second, ShardWriter(tmp_path, "val", prefix="x"):
            pass
    assert len(ShardIndex.open(tmp_path, "val")) == 1


def test_a_tail_of_zeros_is_no_end(tmp_path):
    """A download that was cut, in a file made at its full size before."""
    tar = fill(tmp_path)
    (tmp_path / "_info.json").unlink()
    content = tar.read_bytes()
    tar.write_bytes(content[:20480] + bytes(len(content) - 20480))
    with pytest.raises(DataError, match="bytes should hold members or be missing|end"):
        ShardIndex.open(tmp_path, "val")


def test_hidden_tars_are_no_shards(tmp_path):
    tar = fill(tmp_path)
    (tmp_path / "_info.json").unlink()
    (tmp_path / "._x-val-0000.tar").write_bytes(b"of macOS")
    (tmp_path / ".x-val-0001.tar").write_bytes(tar.read_bytes())
    assert len(ShardIndex.open(tmp_path, "val")) == 40


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "x-val-0000.tar").symlink_to(tmp_path / "not" / "fetched.tar")
    with pytest.raises(DataError, match=r"x-val-0000.tar is not a file, or a link that leads nowhere: fetch what it"):
        ShardIndex.open(tmp_path, "val")


def test_two_label_rules_have_an_index_each(tmp_path):
    fill(tmp_path)
    index = ShardIndex.open(tmp_path, "val")
    kind, arguments = index.__reduce__()
    ShardIndex.open(tmp_path, "val", label="json:field")
    assert kind(*arguments).labels.tolist() == index.labels.tolist()


def test_names_that_a_terminal_would_obey_are_shown_escaped(tmp_path, capsys):
    key = "n0\n\x1b[2Jx"
    write_tar(tmp_path / "x-val-0.tar", [(f"{key}.jpg", b"1"), (f"{key}.cls", b"0"), ("y.jpg", b"1")])
    index = ShardIndex.open(tmp_path, "val")
    assert index.key(0) == key
    assert IndexedReader(index).name(0).startswith(r"n0\n\x1b[2Jx in ")
    write_tar(tmp_path / "x-val-0.tar", [(f"{key}.cls", b"0"), ("y\x1b.jpg", b"1"), ("z.jpg", b"1"), ("z.cls", b"1")])
    assert main(["data", "verify", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert r"sample n0\n\x1b[2Jx has no image" in said.out
    assert r"the first is y\x1b" in said.out
    assert "\x1b" not in said.out + said.err
    with pytest.raises(DataError, match=r"sample n0\\n\\x1b\[2Jx has no image"):
        ShardIndex.open(tmp_path, "val")


@pytest.mark.parametrize(
    ("pack", "kind", "command"),
    [
        (gzip.compress, "gzip", "mv x-val-0.tar x-val-0.tar.gz && gunzip x-val-0.tar.gz"),
        (bz2.compress, "bzip2", "mv x-val-0.tar x-val-0.tar.bz2 && bunzip2 x-val-0.tar.bz2"),
        (lzma.compress, "xz", "mv x-val-0.tar x-val-0.tar.xz && unxz x-val-0.tar.xz"),
        (lambda body: b"(\xb5/\xfd" + body, "zstd", "x-val-0.tar.zst && unzstd --rm x-val-0.tar.zst"),
    ],
)
def test_compressed_shards_are_recognised(tmp_path, pack, kind, command):
    (tmp_path / "set").mkdir()
    path = write_tar(tmp_path / "set" / "x-val-0.tar", entries(3))
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(DataError, match=f"x-val-0.tar is compressed by {kind}, so .*: unpack it with `.*{command}`"):
        ShardIndex.open(tmp_path / "set", "val")
    (report,) = verify_shards(tmp_path / "set", LabelRule(), progress=False)
    assert f"it is compressed by {kind}: unpack it" in report.defects[0].what
    # Of a stream, too, and no second attempt is made.
    with pytest.raises(DataError, match=f"x-val-0.tar is compressed by {kind}") as error:
        Remote(f"file:{tmp_path}", "set").shard("x-val-0.tar", 3, None, CLS, "error")
    assert "attempts" not in str(error.value)


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.bz2", "txz", "tar.zst"])
def test_compressed_tars_are_not_passed_over(tmp_path, ending):
    write_tar(tmp_path / f"x-val-1.{ending}", entries(3, "b/"))
    message = rf"x-val-1\.{ending} is compressed, and not read: unpack it with `\w+( --rm)? x-val-1\.{ending}`"
    for others in (0, 1):
        if others:
            write_tar(tmp_path / "x-val-0.tar", entries(3, "a/"))
        with pytest.raises(DataError, match=message):
            ShardIndex.open(tmp_path, "val")
    write_tar(tmp_path / "x-val-1.tar", entries(3, "b/"))
    assert len(ShardIndex.open(tmp_path, "val")) == 6


def test_dots_in_names_are_explained(tmp_path):
    write_tar(tmp_path / "x-val-0.tar", [("a.b/the.cat.1.jpg", b"1"), ("a.b/the.cat.1.cls", b"1")])
    message = (
        r"no image, only cat.1.jpg, cat.1.cls, as a sample's key ends at the first dot .*: write the shard with file "
        r"names whose one dot is that before the ending, such as a\.b/the_cat_1\.jpg for a\.b/the\.cat\.1\.jpg"
    )
    with pytest.raises(DataError, match=message):
        ShardIndex.open(tmp_path, "val")


def test_a_second_sample_that_a_dot_hides_is_not_lost(tmp_path):
    members = [("cat.jpg", b"1"), ("cat.cls", b"1"), ("cat.1.jpg", b"2"), ("cat.1.cls", b"2")]
    write_tar(tmp_path / "x-val-0.tar", members)
    with pytest.raises(DataError, match=r"cat\.1\.jpg would be part of sample cat, as a key ends at the first dot"):
        ShardIndex.open(tmp_path, "val")
    # A map or a smaller copy of the image has no label of its own.
    write_tar(tmp_path / "x-val-0.tar", members[:3])
    assert len(ShardIndex.open(tmp_path, "val")) == 1


def test_images_in_formats_that_are_not_read_are_counted(tmp_path):
    samples = [("a", "jpg"), ("b", "bmp"), ("c", "TIF"), ("d", "png")]
    write_tar(tmp_path / "x-val-0.tar", [(f"{key}.{e}", b"1") for key, image in samples for e in (image, "cls")])
    told = r"the image of sample {} is {}; so it is with 2 of the 4 samples of this shard"
    with pytest.raises(DataError, match=told.format("b", "bmp") + r": write the shard with images as jpg, .* PNG"):
        ShardIndex.open(tmp_path, "val")
    index = ShardIndex.open(tmp_path, "val", on_error="skip")
    assert [index.key(number) for number in range(len(index))] == ["a", "d"]
    assert [defect.what for defect in index.defects] == [told.format("b", "bmp"), told.format("c", "tif")]


@pytest.mark.parametrize("name", ["_info.json", "x-val-0000.tar", "x-val-0000.idx", "notes.json"])
def test_named_pipes_are_not_waited_for(tmp_path, name):
    fill(tmp_path)
    (tmp_path / "_info.json").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} (cannot be read \(.*not a regular file|is not a file)"):
        ShardIndex.open(tmp_path, "val")
    assert verify_shards(tmp_path, LabelRule(), progress=False)[0].count == 1


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("filenames", ["x" * 5000 + ".tar"], "is longer than a file's name can be"),
        ("filenames", ["ü" * 200 + ".tar"], "is longer than a file's name can be"),
        ("shard_lengths", [10**14], "100000000000000 is more than a set can have"),
        ("num_samples", 10**400, "0000 is more than a set can have"),
        ("num_classes", 10**14, "100000000000000 is more than a set can have"),
    ],
)
def test_what_no_set_can_have(tmp_path, field, value, what):
    info = {"splits": {"val": {"filenames": ["x-val-0.tar"], field: value}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    for opened in (
        lambda: ShardIndex.open(tmp_path, "val"),
        lambda: list_remote_split(Remote(f"file:{tmp_path}"), "val"),
    ):
        with pytest.raises(DataError, match=what):
            opened()


def test_a_size_of_many_digits(tmp_path):
    with tarfile.open(tmp_path / "x-val-0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"size": "9" * 5000}
        tar.addfile(info)
    with pytest.raises(DataError, match="the size record b'99999999999999999999' is not a number of bytes"):
        ShardIndex.open(tmp_path, "val")


def test_a_folder_of_compressed_shards_alone_is_told(tmp_path):
    (tmp_path / "x-val-0.tar.gz").write_bytes(b"")
    (report,) = verify_shards(tmp_path, LabelRule(), progress=False)
    assert report.missing == (f"{tmp_path / 'x-val-0.tar.gz'} is compressed, and not read: unpack it with "
                              "`gunzip x-val-0.tar.gz`.",)  # fmt: skip
