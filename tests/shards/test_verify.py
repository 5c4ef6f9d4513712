"""`lit-robust data verify`: all that is wrong is listed, and sound shards pass."""

import json

import pytest
from shard_making import encoded, entries, pixels, write_tar

from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.shards import ShardIndex, ShardWriter
from lit_robust.shards.labels import LabelRule
from lit_robust.shards.verify import verify_shards

AUTO = LabelRule()


def verify(path, **options):
    return verify_shards(path, AUTO, progress=False, **options)


def write(folder, split, count):
    with ShardWriter(folder, split, shard_size=4, num_classes=7) as writer:
        for number in range(count):
            image = encoded(pixels(number), "JPEG")
            writer.write(f"{split}{number:04d}", {"jpg": image, "cls": b"%d" % (number % 3)})


@pytest.fixture
def root(tmp_path):
    """A set with two splits, and two cells of another."""
    root = tmp_path / "data"
    write(root / "imagenet", "train", 10)
    write(root / "imagenet", "val", 6)
    for severity in "12":
        write(root / "imagenet-c" / "fog" / severity, "val", 5)
    return root


def test_sound_shards(root, capsys):
    reports = verify(root, decode=True)
    assert [(str(one.folder.relative_to(root)), one.split, one.shards, one.samples) for one in reports] == [
        ("imagenet", "train", 3, 10),
        ("imagenet", "val", 2, 6),
        ("imagenet-c/fog/1", "val", 2, 5),
        ("imagenet-c/fog/2", "val", 2, 5),
    ]
    assert [one.images_per_class.tolist() for one in reports] == [[4, 3, 3], [2, 2, 2], [2, 2, 1], [2, 2, 1]]
    assert all(one.agrees and one.info == ("_info.json",) and not one.count for one in reports)
    assert reports[1].size == sum(file.stat().st_size for file in (root / "imagenet").glob("*val*"))
    assert main(["data", "verify", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == f"{root}/imagenet train 3 10 51 kB 3 3 to 4 0 _info.json agrees 0"
    assert lines[-1] == "defects: 0"
    assert "splits: " not in "".join(lines)
    assert main(["data", "verify", str(root), "--quick"]) == 0
    assert "4 of 4 splits: digests were not compared, as --quick is given" in capsys.readouterr().out


def damage(path, at, content):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_all_defects_are_listed(root, capsys):
    folder = root / "imagenet"
    shards = sorted(folder.glob("*.tar"))
    damage(shards[0], 0, b"\xff")
    (shards[2]).write_bytes(shards[2].read_bytes()[:700])
    write_tar(
        shards[3], [("v0.jpg", encoded(pixels(0), "JPEG")), ("v0.cls", b"9"), ("v1.jpg", b"no image"), ("v1.cls", b"1")]
    )
    write_tar(shards[4], [("v0.jpg", b"x"), ("v0.cls", b"1"), ("v2.jpg", encoded(pixels(2), "PNG")), ("v3.cls", b"1")])
    train, val = verify(folder, decode=True)
    assert [(one.shard, one.what.split(" (")[0]) for one in train.defects] == [
        (shards[0].name, "the checksum of a member's header is wrong"),
        (
            shards[2].name,
            f"'train0008.jpg' needs {len(encoded(pixels(8), 'JPEG'))} bytes, but the file ends at byte 700",
        ),
    ]
    assert not train.agrees
    assert {(one.shard, one.what.split(" (")[0]) for one in val.defects} == {
        (shards[3].name, "samples with a class beyond the 7 of the info file: 1, the highest is v0"),
        (shards[3].name, "The image of v1 is none of JPEG, PNG, WEBP, or damaged"),
        (shards[4].name, f"sample v0 is in {shards[3].name} as well"),
        (shards[3].name, "it holds 2 samples, but the info file says 4"),
        (shards[4].name, "sample v3 has no image, only cls"),
        (shards[4].name, "samples without a class: 1, the first is v2"),
    }
    assert val.unlabelled == 1
    assert main(["data", "verify", str(root), "--decode", "--workers", "1"]) == 2
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == f"defects: {train.count + val.count}"
    assert f"{shards[0]} at byte 0: the checksum" in output.out
    assert output.err.count("\n") == 1
    assert f"(defects: {train.count + val.count})" in output.err


def test_shards_that_are_missing(root, tmp_path):
    next((root / "imagenet").glob("*train-0001.tar")).unlink()
    train, val = verify(root / "imagenet")
    assert "1 of the 3 shards" in train.missing[0]
    assert (train.samples, train.shards, train.agrees, val.count) == (6, 2, False, 0)
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in (0, 1, 4, 6):
        write_tar(loose / f"x-val-{number}.tar", entries(1, f"{number}/"))
    (report,) = verify(loose)
    assert [sentence.split(" is missing")[0] for sentence in report.missing] == [
        "Shard number 2 to 3",
        "Shard number 5",
    ]


def test_samples_without_a_class(tmp_path):
    write_tar(tmp_path / "x-val-0.tar", [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"1"), ("c.jpg", b"1")])
    (report,) = verify(tmp_path)
    assert (report.unlabelled, len(report.defects)) == (2, 1)
    assert report.defects[0].what == "samples without a class: 2, the first is b"
    # Where none has a class the set is not meant to have any.
    write_tar(tmp_path / "x-val-0.tar", [("a.jpg", b"1"), ("b.jpg", b"1")])
    (report,) = verify(tmp_path)
    assert (report.unlabelled, len(report.defects)) == (2, 0)


def test_a_malformed_info_file_does_not_hide_other_sets(root):
    (root / "imagenet" / "_info.json").write_text("{")
    first, *rest = verify(root)
    assert "cannot be read" in first.missing[0]
    assert [one.count for one in rest] == [0, 0]


def test_shards_that_an_info_file_above_lists(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "x-val-0.tar", entries(2, name))
    info = {"splits": {"val": {"filenames": ["a/x-val-0.tar"], "num_samples": 2}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert [(one.folder, one.samples) for one in verify(tmp_path)] == [(tmp_path, 2), (tmp_path / "b", 2)]


def test_links_that_lead_round(tmp_path):
    write(tmp_path / "data" / "set", "val", 2)
    (tmp_path / "other").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "set" / "up").symlink_to(tmp_path / "data")
    assert len(verify(tmp_path / "other")) == 1


def test_labels_of_wordnet_ids(tmp_path, capsys):
    write_tar(tmp_path / "x-val-0.tar", [("n01440764_1.jpg", b"1"), ("n01443537_1.jpg", b"1")])
    assert main(["data", "verify", str(tmp_path), "--label", "wordnet"]) == 0
    assert "1 to 1" in capsys.readouterr().out
    assert main(["data", "verify", str(tmp_path), "--label", "class"]) == 2
    assert "no label source 'class'" in capsys.readouterr().err


def test_no_shards(tmp_path, capsys):
    with pytest.raises(UserError, match="no shards in"):
        verify(tmp_path)
    (tmp_path / "notes.json").write_text("{}")
    assert main(["data", "verify", str(tmp_path)]) == 2
    assert main(["data", "verify", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_digests_show_what_no_reader_can_see(root, capsys):
    """A class that is another by one bit; and last samples that became zeros, which pass as padding."""
    folder = root / "imagenet"
    shards = sorted(folder.glob("*train*.tar"))
    before = verify_shards(folder, AUTO, quick=True)[0]
    flip(shards[0], ShardIndex.open(folder, "train").offset[1] - 1024)
    write_tar(folder / "x.part", entries(4)).rename(shards[2])
    train, val = verify(folder)
    assert [(one.shard, one.what) for one in train.defects] == [
        (shards[0].name, "its bytes are not those whose sha256 _info.json has"),
        (shards[2].name, "it holds 4 samples, but the info file says 2"),
    ]
    assert (before.count, train.unseen, val.count) == (0, "", 0)
    write_tar(folder / "x.part", entries(2)).rename(shards[2])
    assert [one.shard for one in verify(folder)[0].defects] == [shards[0].name, shards[2].name]
    assert verify_shards(folder, AUTO, quick=True, progress=False)[0].count == 0
    assert main(["data", "verify", str(folder)]) == 2
    assert f"{shards[0]} at byte 0: its bytes are not those" in capsys.readouterr().out


def test_what_cannot_be_seen_without_digests_or_counts_is_told(tmp_path, capsys):
    for name, info in (("bare", None), ("counted", {"filenames": ["x-val-0.tar"], "shard_lengths": [3]})):
        (tmp_path / name).mkdir()
        path = write_tar(tmp_path / name / "x-val-0.tar", [(f"{n}.{e}", b"1") for n in "abc" for e in ("jpg", "cls")])
        if info:
            (tmp_path / name / "_info.json").write_text(json.dumps({"splits": {"val": info}}))
        content = path.read_bytes()
        path.write_bytes(content[: 4 * 1024] + bytes(len(content) - 4 * 1024))
    bare, counted = verify(tmp_path)
    assert (bare.samples, bare.count, counted.count) == (2, 0, 1)
    assert counted.defects[0].what == "it holds 2 samples, but the info file says 3"
    assert main(["data", "verify", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "1 of 2 splits: neither counts nor digests, so damage within an image" in said
    assert "nor small samples that are lost at a shard's end" in said
    assert "1 of 2 splits: no digests, so damage" in said


@pytest.mark.parametrize("digests", [["0" * 63], ["0" * 64] * 3, [7], "0" * 64, ["G" * 64]])
def test_digests_that_are_none(root, digests):
    path = root / "imagenet" / "_info.json"
    info = json.loads(path.read_text())
    info["splits"]["val"]["shard_sha256"] = digests
    path.write_text(json.dumps(info))
    (report, *_) = verify(root)
    assert "_info.json, split 'val', is malformed (" in report.missing[0]
