"""Tars as sources: read as they are, and never a byte written outside the shards' folder."""

import gzip
import io
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import check_space
from lit_robust.data.packing import shard_images
from lit_robust.data.packing.sources import Tree, open_source

FILES = {"x/a/1.jpg": b"one" * 400, "x/a/2.jpg": b"two", "x/b/1.png": b"three", "x/notes.txt": b"no image"}


def tar_bytes(files, form=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def contents(source, output):
    with open_source(source, output, "val") as tree:
        return {file.name: tree.read(file) for file in tree.files}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_tar_gives_its_files(tmp_path, mode):
    source = tmp_path / "in" / "images.archive"
    source.parent.mkdir()
    with tarfile.open(source, mode) as tar:
        for name, body in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    assert contents(source, tmp_path / "out") == FILES
    assert everything(tmp_path) == ["in", "in/images.archive"]


def test_the_same_shards_from_a_folder_and_its_tar(tmp_path):
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar_bytes(FILES)))
    for source in ("x", "x.tar.gz"):
        shard_images(tmp_path / source, tmp_path / "from" / source / "set", "val", shard_size=2)
    made = [{p.name: p.read_bytes() for p in (tmp_path / "from" / s / "set").iterdir()} for s in ("x", "x.tar.gz")]
    assert made[0] == made[1]
    assert len(made[0]) == 3


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_class_tars(tmp_path, form):
    # The form of ILSVRC2012_img_train.tar.
    inner = {
        wnid: {f"{wnid}_{n}.JPEG": f"{wnid} {n}".encode() * (1 + 300 * n) for n in (1, 2)}
        for wnid in ("n01443537", "n01440764")
    }
    outer = {f"{wnid}.tar": tar_bytes(files, form) for wnid, files in inner.items()}
    (tmp_path / "train.tar").write_bytes(tar_bytes(outer, form))
    expected = {f"{wnid}/{name}": body for wnid, files in inner.items() for name, body in files.items()}
    assert contents(tmp_path / "train.tar", tmp_path / "out") == expected
    (tmp_path / "train").mkdir()
    for name, body in outer.items():
        (tmp_path / "train" / name).write_bytes(body)
    assert contents(tmp_path / "train", tmp_path / "out") == expected
    packed = shard_images(tmp_path / "train.tar", tmp_path / "out", "train", labels="imagenet")
    assert (packed.images, packed.left) == (4, ())


def wicked(name, kind=tarfile.REGTYPE, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (wicked("../escaped.jpg"), "'../escaped.jpg' leads out of the archive"),
        (wicked("a/../../escaped.jpg"), "'a/../../escaped.jpg' leads out of the archive"),
        (wicked("/tmp/scr/escaped.jpg"), "'/tmp/scr/escaped.jpg' leads out of the archive"),
        (wicked("a/link.jpg", tarfile.SYMTYPE, "/etc/passwd"), "'a/link.jpg' is a symbolic link"),
        (wicked("a/hard.jpg", tarfile.LNKTYPE, "a/1.jpg"), "'a/hard.jpg' is a hard link"),
        (wicked("a/null", tarfile.CHRTYPE), "'a/null' is a character device"),
        (wicked("a/disk", tarfile.BLKTYPE), "'a/disk' is a block device"),
        (wicked("a/pipe", tarfile.FIFOTYPE), "'a/pipe' is a pipe"),
    ],
)
@pytest.mark.parametrize("packer", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_what_is_no_plain_file_inside_is_refused(tmp_path, member, expected, packer):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(wicked("a/1.jpg"))
        tar.addfile(member)
    source = tmp_path / "deep" / "images.tar"
    source.parent.mkdir()
    source.write_bytes(packer(buffer.getvalue()))
    with pytest.raises(DataError, match="is not packed, as at byte 512 ") as refused:
        shard_images(source, tmp_path / "deep" / "out", "val")
    assert expected in str(refused.value)
    assert str(source) in str(refused.value)
    assert everything(tmp_path) == ["deep", "deep/images.tar"]


def test_what_a_class_tar_hides_is_refused(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        tar.addfile(wicked("../../escaped.JPEG"))
    (tmp_path / "train.tar").write_bytes(tar_bytes({"n01440764.tar": inner.getvalue()}))
    with pytest.raises(DataError, match=r"in its member n01440764\.tar is not packed.*leads out of the archive"):
        shard_images(tmp_path / "train.tar", tmp_path / "out", "train")
    assert everything(tmp_path) == ["train.tar"]


@pytest.mark.parametrize("packer", [bytes, gzip.compress], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("cut", [5000, 1000, 700])
def test_archives_cut_short_are_refused(tmp_path, packer, cut):
    whole = packer(tar_bytes({f"a/{n}.jpg": bytes(range(256)) * 9 for n in range(3)}))
    source = tmp_path / "images.tar"
    source.write_bytes(whole[: min(cut, len(whole) - 20)])
    with pytest.raises(DataError, match=r"images\.tar is (defective|damaged|not packed)"):
        shard_images(source, tmp_path / "out", "val")
    assert everything(tmp_path) == ["images.tar"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\3\4 zip", "is a zip archive: unpack it with `unzip`, and name the folder"),
        (b"(\xb5/\xfd", "is a file compressed by zstd: unpack it with `tar --zstd -xf`"),
        (b"<html>404</html>", "neither a folder nor a tar"),
        (b"", "neither"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path, content, expected):
    (tmp_path / "images.tar").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        shard_images(tmp_path / "images.tar", tmp_path / "out", "val")
    assert everything(tmp_path) == ["images.tar"]


def test_leftovers_of_a_killed_run_go(tmp_path):
    (tmp_path / "images.tgz").write_bytes(gzip.compress(tar_bytes(FILES)))
    other = tmp_path / ".out.train.unpacked.tar"
    for name in (".out.val.unpacked.tar", "..out.val.unpacked.tar.x1y2", other.name):
        (tmp_path / name).write_bytes(b"half")
    assert contents(tmp_path / "images.tgz", tmp_path / "out") == FILES
    assert everything(tmp_path) == [other.name, "images.tgz"]


def test_a_full_disk_is_told_before_anything_is_decompressed(tmp_path, monkeypatch):
    (tmp_path / "images.tgz").write_bytes(gzip.compress(tar_bytes({"a/1.jpg": bytes(30_000_000)})))
    assert (tmp_path / "images.tgz").stat().st_size < 1_000_000
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(UserError, match=r"decompressed bytes of .* need 30 MB, but .* has 10 MB free: free"):
        shard_images(tmp_path / "images.tgz", tmp_path / "out", "val")
    assert everything(tmp_path) == ["images.tgz"]


def test_space_is_measured_where_the_folder_will_be(tmp_path, monkeypatch):
    asked = []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(9, 4, 5))
    check_space(tmp_path / "not" / "yet", 5, "The shards")
    with pytest.raises(UserError, match="The shards need"):
        check_space(tmp_path / "not" / "yet", 6, "The shards")
    assert asked == [tmp_path, tmp_path]


def test_an_archive_in_the_folder_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tiny-imagenet-200.zip").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"no images but the archive tiny-imagenet-200\.zip: name it itself"):
        shard_images(tmp_path / "in", tmp_path / "out", "val")


def test_a_class_that_is_there_twice(tmp_path):
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "train" / "n01440764" / "n01440764_1.JPEG").write_bytes(b"1")
    (tmp_path / "train" / "n01440764.tar").write_bytes(tar_bytes({"n01440764_1.JPEG": b"1"}))
    with pytest.raises(
        UserError, match=r"both the folder n01440764 and n01440764\.tar, which would be one class twice"
    ):
        shard_images(tmp_path / "train", tmp_path / "out", "train")


def test_a_tar_is_measured_once_not_once_a_file(tmp_path, monkeypatch):
    source = tmp_path / "images.tar"
    source.write_bytes(tar_bytes({f"a/{n}.jpg": b"x" for n in range(50)}))
    asked = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: asked.append(path) or stat(path, **how))
    tree = Tree(source, "images.tar")
    assert len(tree.files) == 50
    assert asked.count(source) <= 2
