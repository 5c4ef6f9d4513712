"""`lit-robust data corrupt` on tiny shards: what it writes, resumes and refuses."""

import io
import json
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.data import EvaluationCrop, ImageNetCDataModule, ImageNetCLikeDataModule
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.packing.derivation import Derivation
from lit_robust.data.packing.deriving import announce, derive
from lit_robust.shards import ShardWriter
from lit_robust.shards.write import sole_writer
from lit_robust.stimuli.corrupted import Corrupted, frost_digest
from lit_robust.stimuli.corruptions import FrostPictures

CELLS = ["--corruptions", "[fog, gaussian_noise]", "--severities", "[1, 4]", "--seed", "5"]
SIZES = ["--resize", "null", "--crop", "null"]
SMALL = {"eval_batch_size": 4, "num_workers": 0}


def write_clean(folder, count):
    """Write drawn images of 24 px."""
    random = np.random.default_rng(0)
    with ShardWriter(folder, "val", num_classes=5) as writer:
        for number in range(count):
            file = io.BytesIO()
            pixels = np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((6, 6, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            writer.write(f"{number % 5}/{number:03d}", {"png": file.getvalue(), "cls": b"%d" % (number % 5)})


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Twenty-one images: batches of 16 leave a remainder."""
    root = tmp_path_factory.mktemp("clean")
    write_clean(root / "imagenet", 21)
    return root


def corrupt(clean, output, *options):
    return main(["data", "corrupt", str(clean / "imagenet"), str(output), *CELLS, *SIZES, *options])


def cell_of(clean, output, cell, frost=None, encoding="png", shard_size=1000):
    split = open_table(clean / "imagenet", "val", Reading())
    corruption, severity = cell.split("/")
    return Derivation(
        source=split,
        folder=output / cell,
        split="val",
        stimulus=Corrupted(corruption=corruption, severity=int(severity), seed=5, frost=frost),
        crop=EvaluationCrop(None, None),
        encoding=encoding,
        shard_size=shard_size,
        by="lit-robust data corrupt",
        what="the corrupted images",
    )


@pytest.fixture(scope="module")
def written(clean, tmp_path_factory):
    """The four cells, lossless."""
    root = tmp_path_factory.mktemp("written")
    assert corrupt(clean, root / "imagenet-c-like", "--encoding", "png") == 0
    return root


def everything(module):
    module.setup("test")
    (loader,) = module.test_dataloader().values()
    batches = [batch.select(batch.valid) for batch in loader]
    return [torch.cat([getattr(batch, name) for batch in batches]) for name in ("image", "label", "group")]


def test_written_and_corrupted_as_loaded_are_the_same_pixels(clean, written):
    module = ImageNetCDataModule(written, ["fog", "gaussian_noise"], [1, 4], name="imagenet-c-like", **SMALL)
    images, labels, groups = everything(module)
    fly = ImageNetCLikeDataModule(clean, ["fog", "gaussian_noise"], [1, 4], EvaluationCrop(None, None), seed=5, **SMALL)
    like_images, like_labels, like_groups = everything(fly)
    # Files come cell by cell, images as loaded image by image.
    for cell in range(4):
        assert torch.equal(images[21 * cell : 21 * (cell + 1)], like_images[cell::4])
        assert torch.equal(labels[21 * cell : 21 * (cell + 1)], like_labels[cell::4])
        assert torch.equal(groups[21 * cell : 21 * (cell + 1)], like_groups[cell::4])
    assert not torch.equal(images[:21], images[21:42])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59, "less than a minute"), (61, "1.0 minutes"), (5399, "90.0 minutes"), (9000, "2.5 hours")],
)
def test_what_takes_long_is_announced(capsys, seconds, words):
    announce("drawing 9 figures", 1.2e9, seconds)
    assert capsys.readouterr().err == f"Drawing 9 figures: about 1.2 GB, {words}.\n"


def test_what_is_there_is_kept_and_what_is_missing_written(clean, written, tmp_path, capsys):
    output = tmp_path / "imagenet-c-like"
    assert corrupt(clean, output, "--encoding", "png", "--workers", "1") == 0
    size = sum(len(tar.read_bytes()) for tar in output.rglob("*.tar"))
    (said,) = re.findall(r"Corrupting 84 images: about ([\d.]+) kB, less than a minute\.", capsys.readouterr().err)
    assert float(said) * 1000 == pytest.approx(size, rel=0.3)
    tars = sorted(tar.relative_to(output) for tar in output.rglob("*.tar"))
    # One process or two: the bytes are the same.
    assert [(output / tar).read_bytes() for tar in tars] == [
        (written / "imagenet-c-like" / tar).read_bytes() for tar in tars
    ]
    times = {tar: (output / tar).stat().st_mtime_ns for tar in tars}
    # As a kill leaves it: the mark, a shard that was begun, and no word of the split.
    cell = output / "fog" / "4"
    lost = next(cell.glob("*.tar"))
    content = lost.read_bytes()
    lost.unlink()
    (cell / "_info.json").unlink()
    mark = cell_of(clean, output, "fog/4").mark
    (cell / ".4-val.unfinished").write_text(json.dumps(mark))
    (cell / "._info.json.k1ll3d").write_text("half of it")
    (cell / f".{lost.name}.k1ll3d").write_bytes(content[:5000])
    assert corrupt(clean, output, "--encoding", "png") == 0
    assert "Corrupting 21 images: " in capsys.readouterr().err
    assert lost.read_bytes() == content
    assert sorted(path.name for path in cell.iterdir()) == [lost.name, "_info.json"]
    assert {tar: (output / tar).stat().st_mtime_ns for tar in tars if (output / tar) != lost} == {
        tar: time for tar, time in times.items() if (output / tar) != lost
    }


def test_jpegs_have_the_published_quality(clean, tmp_path):
    (image,) = cell_of(clean, tmp_path, "contrast/5", encoding="jpg").encoded([0])
    found = Image.open(io.BytesIO(image))
    reference = io.BytesIO()
    Image.new("RGB", (8, 8)).save(reference, "JPEG", quality=85)
    assert found.format == "JPEG"
    assert found.quantization == Image.open(reference).quantization


def test_the_name_of_the_published_set_is_refused(clean, tmp_path, capsys):
    assert corrupt(clean, tmp_path / "imagenet-c") == 2
    assert "would pass for the published ImageNet-C: name the folder imagenet-c-like" in capsys.readouterr().err
    assert not (tmp_path / "imagenet-c").exists()


def test_other_settings_in_the_same_folder_are_refused(clean, written, capsys):
    assert corrupt(clean, written / "imagenet-c-like", "--encoding", "png", "--seed", "6") == 2
    assert "is of other images or settings: choose another output" in capsys.readouterr().err


def test_unknown_names_are_refused(clean, tmp_path, capsys):
    assert corrupt(clean, tmp_path / "x", "--corruptions", "[rain]") == 2
    assert "corruptions is ['rain']: name some of gaussian_noise" in capsys.readouterr().err


def test_tars_of_somebody_else_are_never_removed(clean, tmp_path, capsys):
    mine = tmp_path / "mine" / "fog" / "1" / "precious.tar"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"precious")
    assert corrupt(clean, tmp_path / "mine") == 2
    assert "is of other images or settings: choose another output" in capsys.readouterr().err
    assert mine.read_bytes() == b"precious"


def test_a_cell_that_lost_a_shard_is_written_again(clean, tmp_path):
    cell = cell_of(clean, tmp_path, "contrast/5")
    assert derive([cell], workers=0) == {cell.folder: 0}
    (tar,) = cell.folder.glob("*.tar")
    content = tar.read_bytes()
    tar.unlink()
    assert not cell.is_finished
    assert derive([cell], workers=0) == {cell.folder: 0}
    assert tar.read_bytes() == content
    assert derive([cell], workers=0) == {}


def test_a_full_disk_is_told_before_anything_is_written(clean, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**4, 10**4))
    assert corrupt(clean, tmp_path / "x") == 2
    assert "The corrupted images, by an estimate, need " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_estimate_is_near_the_truth(clean, written):
    tars = list((written / "imagenet-c-like" / "fog" / "4").glob("*.tar"))
    estimate = cell_of(clean, written / "imagenet-c-like", "fog/4").estimated_size()
    # Three images speak for 21; and a tar ends with up to a record of zeros.
    size = sum(tar.stat().st_size for tar in tars)
    assert 0.8 * (size - 20 * 512) < estimate < 1.2 * size


def test_a_shard_that_is_stopped_is_not_there(clean, tmp_path):
    told = []

    def stop(count):
        told.append(count)
        raise LookupError

    cell = cell_of(clean, tmp_path, "fog/1")
    cell.begin()
    with pytest.raises(LookupError):
        cell.write(0, stop)
    assert told == [16]
    assert [path.name for path in cell.folder.iterdir()] == [".1-val.unfinished"]
    assert cell.missing() == [0]
    cell.write(0, told.append)
    assert told == [16, 16, 5]
    assert cell.finish() == 0
    assert cell.is_finished


def test_an_error_ends_the_other_shards_at_once(tmp_path):
    write_clean(tmp_path / "clean" / "imagenet", count=1500)
    cells = [cell_of(tmp_path / "clean", tmp_path / "x", cell) for cell in ("glass_blur/5", "fog/1")]
    taken = sole_writer(tmp_path / "x" / "fog" / "1", "1-val")
    with taken, pytest.raises(UserError, match="Another run writes the corrupted images in .*fog/1: wait for it"):
        derive(cells, workers=2)
    assert not list((tmp_path / "x").rglob("*.tar"))


def frost_pictures(folder, seed):
    folder.mkdir()
    for number in range(1, 6):
        pixels = np.random.default_rng(seed + number).integers(0, 256, (230, 240, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"frost{number}.png")
    return FrostPictures(folder)


def test_frost_is_told_by_its_pictures_not_by_their_folder(tmp_path):
    one = frost_digest(frost_pictures(tmp_path / "one", 0))
    assert frost_digest(frost_pictures(tmp_path / "moved", 0)) == one
    assert frost_digest(frost_pictures(tmp_path / "other", 1)) != one


def test_cells_with_other_frost_are_refused(clean, tmp_path):
    derive([cell_of(clean, tmp_path, "contrast/1")], workers=0)
    frost_pictures(tmp_path / "frost", 0)
    with pytest.raises(UserError, match="is of other images or settings"):
        _ = cell_of(clean, tmp_path, "contrast/1", frost=tmp_path / "frost").is_finished
