"""`lit-robust data corrupt` on tiny shards: what it writes, resumes and refuses."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lit_robust.cli import main
from lit_robust.data import EvaluationCrop, ImageNetCDataModule, ImageNetCLikeDataModule
from lit_robust.shards import ShardWriter

CELLS = ["--corruptions", "[fog, gaussian_noise]", "--severities", "[1, 4]", "--seed", "5"]
SIZES = ["--resize", "null", "--crop", "null"]
SMALL = {"eval_batch_size": 4, "num_workers": 0}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Twenty-one drawn images of 24 px: batches of 16 leave a remainder."""
    root = tmp_path_factory.mktemp("clean")
    random = np.random.default_rng(0)
    with ShardWriter(root / "imagenet", "val", num_classes=5) as writer:
        for number in range(21):
            file = io.BytesIO()
            pixels = np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((6, 6, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            writer.write(f"{number % 5}/{number:03d}", {"png": file.getvalue(), "cls": b"%d" % (number % 5)})
    return root


def corrupt(clean, output, *options):
    return main(["data", "corrupt", str(clean / "imagenet"), str(output), *CELLS, *SIZES, *options])


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


def test_what_is_there_is_kept_and_what_is_missing_written(clean, written, tmp_path):
    output = tmp_path / "imagenet-c-like"
    assert corrupt(clean, output, "--encoding", "png", "--workers", "1") == 0
    tars = sorted(tar.relative_to(output) for tar in output.rglob("*.tar"))
    # One process or two: the bytes are the same.
    assert [(output / tar).read_bytes() for tar in tars] == [
        (written / "imagenet-c-like" / tar).read_bytes() for tar in tars
    ]
    times = {tar: (output / tar).stat().st_mtime_ns for tar in tars}
    # As a kill leaves it: the mark, a shard that is cut, and no word of the split.
    cell = output / "fog" / "4"
    info = json.loads((cell / "_info.json").read_text())
    (cell / "_info.json").write_text(json.dumps({**info, "splits": {}}))
    lost = next(cell.glob("*.tar"))
    content = lost.read_bytes()
    lost.write_bytes(content[:5000])
    assert corrupt(clean, output, "--encoding", "png") == 0
    assert lost.read_bytes() == content
    assert {tar: (output / tar).stat().st_mtime_ns for tar in tars if (output / tar) != lost} == {
        tar: time for tar, time in times.items() if (output / tar) != lost
    }


def test_jpegs_have_the_published_quality(clean, tmp_path):
    output = tmp_path / "imagenet-c-like"
    assert corrupt(clean, output, "--corruptions", "[contrast]", "--severities", "[5]") == 0
    from lit_robust.shards import IndexedReader, ShardIndex

    reader = IndexedReader(ShardIndex.open(output / "contrast" / "5", "val"))
    found = Image.open(io.BytesIO(reader.image_bytes(0)))
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
    output = tmp_path / "imagenet-c-like"
    one = ["--corruptions", "[contrast]", "--severities", "[5]"]
    assert corrupt(clean, output, *one) == 0
    (tar,) = (output / "contrast" / "5").glob("*.tar")
    content = tar.read_bytes()
    tar.unlink()
    assert corrupt(clean, output, *one) == 0
    assert tar.read_bytes() == content
