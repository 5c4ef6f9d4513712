"""Packing as a whole: every byte kept, the same tars always, and a killed run taken up where it was."""

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from lit_robust.cli import main
from lit_robust.core.errors import DataError, UserError
from lit_robust.data.packing import shard_images, write
from lit_robust.shards import IndexedReader, ShardIndex
from lit_robust.shards.write import sole_writer

KILLED_AT = 33
KILLED = f"""
import os, signal, sys
from pathlib import Path
from lit_robust.data.packing import shard_images, write
count, form = 0, write.sample_bytes
def deadly(*sample):
    global count
    count += 1
    if count == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
    return form(*sample)
write.sample_bytes = deadly
shard_images(Path(sys.argv[1]), Path(sys.argv[2]), "train", shard_size=10, seed=3, workers=2)
"""


def plant(folder, count=60):
    for number in range(count):
        path = folder / f"class{number % 3}" / f"image{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(number).bytes(100 + 37 * number))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read_back(folder, split):
    index = ShardIndex.open(folder, split)
    reader = IndexedReader(index)
    return {reader.key(n): (reader.image_bytes(n), int(index.labels[n])) for n in range(len(index))}


def test_bytes_and_labels_are_kept(tmp_path):
    source = plant(tmp_path / "images")
    packed = shard_images(source, tmp_path / "set", "train", shard_size=25, seed=1)
    assert (packed.images, packed.shards, packed.written, packed.left) == (60, 3, 3, ())
    found = read_back(tmp_path / "set", "train")
    assert found == {
        f"class{n % 3}/image{n}": ((source / f"class{n % 3}/image{n}.JPEG").read_bytes(), n % 3) for n in range(60)
    }
    assert list(found) != sorted(found)
    entry = json.loads((tmp_path / "set" / "_info.json").read_text())["splits"]["train"]
    assert entry["shard_lengths"] == [25, 25, 10]
    assert (entry["num_classes"], entry["class_names"]) == (3, ["class0", "class1", "class2"])
    assert not [name for name in contents(tmp_path / "set") if name.startswith(".")]


def test_workers_change_no_byte_and_the_seed_does(tmp_path):
    source = plant(tmp_path / "images")
    for workers in (1, 3):
        shard_images(source, tmp_path / str(workers) / "set", "train", shard_size=7, workers=workers)
    shard_images(source, tmp_path / "other" / "set", "train", shard_size=7, seed=1)
    made = [contents(tmp_path / name / "set") for name in ("1", "3", "other")]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_tars_are_as_large_as_was_planned(tmp_path, monkeypatch):
    needed = []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: needed.append(path) or usage(10**12, 0, 10**12))
    shard_images(plant(tmp_path / "images"), tmp_path / "set", "train", shard_size=7)
    total = sum(path.stat().st_size for path in (tmp_path / "set").glob("*.tar"))
    # One byte less than the finished tars take is too little, as many are enough.
    for free, enough in ((total - 1, False), (total, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**12, 0, free))
        if enough:
            shard_images(tmp_path / "images", tmp_path / "again" / "set", "train", shard_size=7)
        else:
            with pytest.raises(UserError, match=r"The shards of .* need [\d.]+ kB, but the disk of .* has [\d.]+ kB"):
                shard_images(tmp_path / "images", tmp_path / "again" / "set", "train", shard_size=7)
            assert not (tmp_path / "again" / "set").exists()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source = plant(tmp_path / "images")
    shard_images(source, tmp_path / "whole" / "set", "train", shard_size=10, seed=3)
    output = tmp_path / "killed" / "set"
    run = subprocess.run([sys.executable, "-c", KILLED, str(source), str(output)], capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert 2 <= len(finished) <= 3
    assert {"_info.json"}.isdisjoint(contents(output))
    assert any(name.startswith(".set-train-") for name in contents(output))
    for path in finished:
        assert path.read_bytes() == (tmp_path / "whole" / "set" / path.name).read_bytes()
    with pytest.raises(UserError, match="holds a part of 'train' packed from other images or with other options"):
        shard_images(source, output, "train", shard_size=10, seed=4)
    (output / "._info.json.k1ll3d").write_text("what a kill leaves of it")
    packed = shard_images(source, output, "train", shard_size=10, seed=3, workers=1)
    assert packed.written == 6 - len(finished)
    assert f"6 shards; {len(finished)} of them finished before" in str(packed)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(output) == contents(tmp_path / "whole" / "set")


def test_an_image_that_fails_keeps_what_was_finished(tmp_path, monkeypatch):
    source = plant(tmp_path / "images")
    form = write.sample_bytes

    def failing(key, members):
        if key == "class2/image5":
            raise DataError("broken")
        return form(key, members)

    monkeypatch.setattr(write, "sample_bytes", failing)
    with pytest.raises(DataError, match="broken"):
        shard_images(source, tmp_path / "set", "train", shard_size=5, workers=1)
    left = contents(tmp_path / "set")
    assert not [name for name in left if name.startswith(".set-train-") or name == "_info.json"]
    monkeypatch.undo()
    packed = shard_images(source, tmp_path / "set", "train", shard_size=5)
    assert packed.written == 12 - sum(name.endswith(".tar") for name in left)
    assert len(read_back(tmp_path / "set", "train")) == 60


def test_the_same_command_again_writes_nothing_and_another_is_refused(tmp_path):
    source = plant(tmp_path / "images")
    shard_images(source, tmp_path / "set", "train")
    before = contents(tmp_path / "set")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    again = shard_images(source, tmp_path / "set", "train")
    assert str(again) == "60 images in 1 shard; all of them finished before"
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    for change in ({"seed": 1}, {"shard_size": 50}, {"resize": 8}):
        with pytest.raises(
            UserError, match="has a split 'train' already: choose another folder or split, or delete this one"
        ):
            shard_images(source, tmp_path / "set", "train", **change)
    (source / "class0" / "image0.JPEG").write_bytes(b"longer or shorter")
    with pytest.raises(UserError, match="has a split 'train' already"):
        shard_images(source, tmp_path / "set", "train")
    assert contents(tmp_path / "set") == before


def test_a_shard_that_went_missing_is_written_again_and_a_changed_one_is_refused(tmp_path):
    source = plant(tmp_path / "images")
    shard_images(source, tmp_path / "set", "train", shard_size=20)
    before = contents(tmp_path / "set")
    (tmp_path / "set" / "set-train-0001.tar").unlink()
    assert shard_images(source, tmp_path / "set", "train", shard_size=20).written == 1
    assert contents(tmp_path / "set") == before
    (tmp_path / "set" / "set-train-0001.tar").write_bytes(b"short")
    with pytest.raises(DataError, match=r"set-train-0001\.tar has 5 bytes instead of"):
        shard_images(source, tmp_path / "set", "train", shard_size=20)


def test_a_resized_shard_that_is_not_whole_is_not_taken_as_finished(tmp_path):
    source = tmp_path / "images"
    for number in range(6):
        (source / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        (source / f"c{number % 2}" / f"{number}.png").write_bytes(picture((20, 10 + number), "PNG"))
    shard_images(source, tmp_path / "set", "val", shard_size=2, resize=8)
    shard = tmp_path / "set" / "set-val-0001.tar"
    whole = shard.read_bytes()
    again = {"shard_size": 2, "resize": 8}
    shard.write_bytes(whole[:1500])
    with pytest.raises(
        DataError, match=r"set-val-0001\.tar is not whole, as at byte \d+ .*: remove it, and run this again"
    ):
        shard_images(source, tmp_path / "set", "val", **again)
    shard.write_bytes((tmp_path / "set" / "set-val-0002.tar").read_bytes())
    with pytest.raises(DataError, match=r"0001\.tar holds other samples than the 2 that belong there: remove it"):
        shard_images(source, tmp_path / "set", "val", **again)
    shard.unlink()
    assert shard_images(source, tmp_path / "set", "val", **again).written == 1
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("entry", [[], None, 7, {"filenames": 3}])
def test_an_info_file_with_a_malformed_split(tmp_path, entry):
    source = plant(tmp_path / "images", count=6)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": {"val": entry}}))
    for split in ("val", "train"):
        with pytest.raises(DataError, match=r"_info\.json, split 'val', is malformed .*: correct or remove it"):
            shard_images(source, tmp_path / "set", split)


def test_another_set_is_not_mixed_in(tmp_path):
    shard_images(plant(tmp_path / "images"), tmp_path / "set", "train")
    shard_images(plant(tmp_path / "images"), tmp_path / "set", "val", shard_size=9)
    assert len(read_back(tmp_path / "set", "train")) == len(read_back(tmp_path / "set", "val")) == 60
    other = tmp_path / "other" / "cat"
    other.mkdir(parents=True)
    (other / "1.jpg").write_bytes(b"cat")
    with pytest.raises(UserError, match="has other classes than these images"):
        shard_images(tmp_path / "other", tmp_path / "set", "test", layout="class-folders")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "foreign-train-0000.tar").write_bytes(b"someone's")
    with pytest.raises(UserError, match=r"holds foreign-train-\*\.tar already"):
        shard_images(tmp_path / "images", foreign, "train")
    assert contents(foreign) == {"foreign-train-0000.tar": b"someone's"}


def test_two_runs_at_a_time_are_refused(tmp_path):
    source = plant(tmp_path / "images", count=6)
    with sole_writer(tmp_path / "set", "set-train"):
        with pytest.raises(UserError, match="Another run writes set-train"):
            shard_images(source, tmp_path / "set", "train")
        shard_images(source, tmp_path / "set", "val")
    assert shard_images(source, tmp_path / "set", "train").written == 1


def test_imagenet_c_gives_a_folder_a_cell(tmp_path):
    for cell in ("blur/defocus_blur/1", "blur/defocus_blur/2", "weather/fog/1"):
        plant(tmp_path / "images" / cell, count=9)
    packed = shard_images(tmp_path / "images", tmp_path / "imagenet-c", "val", shard_size=5)
    assert (packed.images, packed.shards) == (27, 6)
    for cell in ("defocus_blur/1", "defocus_blur/2", "fog/1"):
        assert len(read_back(tmp_path / "imagenet-c" / cell, "val")) == 9
    names = sorted(path.name for path in (tmp_path / "imagenet-c" / "fog" / "1").glob("*.tar"))
    assert names == ["imagenet-c-fog-1-val-0000.tar", "imagenet-c-fog-1-val-0001.tar"]
    assert shard_images(tmp_path / "images", tmp_path / "imagenet-c", "val", shard_size=5).written == 0


def picture(size, form, mode="RGB"):
    gradient = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gradient).convert(mode).save(file, form)
    return file.getvalue()


def test_resize(tmp_path):
    files = {
        "a/wide.jpg": picture((101, 60), "JPEG"),
        "a/tall.png": picture((60, 90), "PNG"),
        "b/small.jpg": picture((40, 30), "JPEG"),
        "b/web.webp": picture((64, 64), "WEBP"),
        "b/ink.JPEG": picture((50, 80), "JPEG", "CMYK"),
    }
    for name, body in files.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(body)
    shard_images(tmp_path / "images", tmp_path / "set", "val", resize=32, workers=2)
    entry = json.loads((tmp_path / "set" / "_info.json").read_text())["splits"]["val"]
    assert entry["resize"]["shorter_side"] == 32
    with tarfile.open(tmp_path / "set" / "set-val-0000.tar") as tar:
        made = {m.name: tar.extractfile(m).read() for m in tar if not m.name.endswith(".cls")}
    shapes = {name: (Image.open(io.BytesIO(b)).format, Image.open(io.BytesIO(b)).size) for name, b in made.items()}
    assert shapes == {
        "a/wide.jpg": ("JPEG", (53, 32)),
        "a/tall.png": ("PNG", (32, 48)),
        "b/small.jpg": ("JPEG", (40, 30)),
        "b/web.jpg": ("JPEG", (32, 32)),
        "b/ink.jpeg": ("JPEG", (32, 51)),
    }
    assert made["b/small.jpg"] == files["b/small.jpg"]
    peer = Image.open(io.BytesIO(files["a/tall.png"])).convert("RGB").resize((32, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(made["a/tall.png"]))), np.asarray(peer))
    (tmp_path / "images" / "a" / "wide.jpg").write_bytes(files["a/wide.jpg"][:300])
    with pytest.raises(DataError, match=r"a/wide\.jpg in .* is broken"):
        shard_images(tmp_path / "images", tmp_path / "other", "val", resize=32)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/1.jpg": b""}, "a/1.jpg in .* is empty: replace or remove it"),
        ({"a/x.jpg": b"1", "a/x.png": b"2"}, "a/x.jpg and a/x.png in .* would both be a/x in the shards"),
        ({"a/x.y.jpg": b"1", "a/x_y.jpg": b"2"}, "both be a/x_y in the shards, where a name has no ending and no dots"),
        ({"a/x\ny.jpg": b"1"}, "not a relative path of printable letters"),
        ({f"a/{'x' * 200}.jpg": b"1"}, "shorten it"),
    ],
)
def test_images_that_cannot_be_packed_are_told_before_any_is(tmp_path, files, expected):
    for name, body in {"b/1.jpg": b"fine", **files}.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(body)
    with pytest.raises(UserError, match=expected):
        shard_images(tmp_path / "images", tmp_path / "set", "val")
    assert not (tmp_path / "set").exists()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    source = plant(tmp_path / "images", count=6)
    check = write.check_place

    def meddling(plan):
        (source / "class0" / "image0.JPEG").write_bytes(b"another length")
        return check(plan)

    monkeypatch.setattr(write, "check_place", meddling)
    with pytest.raises(DataError, match="had 100 bytes, now 14: let nobody write there"):
        shard_images(source, tmp_path / "set", "train")


def test_on_the_command_line(tmp_path, capsys):
    source = plant(tmp_path / "images", count=6)
    (source / "class0" / "x.avif").write_bytes(b"gif")
    (source / "class0" / "y.avif").write_bytes(b"gif")
    (source / "LICENSE").write_bytes(b"free")
    command = ["data", "shard", str(source), str(tmp_path / "set"), "--split", "train"]
    assert main([*command, "--workers", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{source}: layout class-folders, 6 images, classes numbered by their sorted names.",
        f"Packed into {tmp_path / 'set'}: 6 images in 1 shard; not packed: 3 other files (2 .avif, 1 without ending), "
        f"such as LICENSE. Images that cannot be read: `lit-robust data verify {tmp_path / 'set'} --decode`.",
    ]
    for more, expected in (
        (["--seed", "1"], "has a split 'train' already"),
        (["--workers", "0"], "workers"),
        (["--layout", "imagenet"], "layout"),
        (["--label-file", "/nowhere"], "/nowhere cannot be read"),
    ):
        assert main([*command, *more]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-robust: ")]
        assert expected in line
    assert main(["data", "shard", str(source), str(source / "set"), "--split", "train"]) == 2
    assert "would lie among the images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tar", "split", "count"),
    [
        ("imagenet-sample.tar", "val", 200),
        ("cue-conflict-sample.tar", "test", 432),
        ("tiny-imagenet-26.tar.gz", "val", 1300),
    ],
)
def test_real_tars_are_packed_as_they_are(real, tmp_path, tar, split, count):
    shard_images(real / tar, tmp_path / "set", split, shard_size=150)
    with tarfile.open(real / tar) as peer:
        below = f"tiny-imagenet/{split}/" if tar.startswith("tiny") else f"{peer.next().name.split('/')[0]}/"
        bodies = {m.name: peer.extractfile(m).read() for m in peer if m.isfile() and m.name.startswith(below)}
    expected = {name.removeprefix(below).rpartition(".")[0]: body for name, body in bodies.items()}
    found = read_back(tmp_path / "set", split)
    assert len(found) == count
    assert {key: body for key, (body, _) in found.items()} == expected
    if split == "val" and count == 200:
        # The sample holds every fifth class, in the order of WordNet ids.
        assert [label for _, (_, label) in sorted(found.items())] == list(range(0, 1000, 5))
