"""Plain folders of images: what is a class, which links are followed, and what is refused."""

import errno

import numpy as np
import pytest
from PIL import Image
from tiny_sets import PLAIN, SMALL, WHOLE, everything, png, ready, write

from lit_robust.core.errors import DataError, UserError
from lit_robust.data import ImageFolderDataModule, ImageNetDataModule
from lit_robust.data.packing import shard_images
from lit_robust.reference import imagenet_wnids


def test_plain_folders_are_read_like_shards(tmp_path):
    wnids = imagenet_wnids()
    files = {f"{wnids[5]}/deep/b.png": 1, f"{wnids[5]}/a.PNG": 0, f"{wnids[2]}/c.png": 2}
    for split in ("train", "val"):
        for name, value in files.items():
            path = tmp_path / "set" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(value))
        (tmp_path / "set" / split / wnids[5] / "notes.txt").write_text("not an image")
    small = {"name": "set", "training": PLAIN, "evaluation": WHOLE, "batch_size": 3, **SMALL}
    module = ready(ImageFolderDataModule(tmp_path, labels="sorted", **small), "fit")
    found = everything(module.val_dataloader())
    assert found["label"].tolist() == [0, 1, 1]
    assert found["image"][:, 0, 0, 0].tolist() == [2, 0, 1]
    assert sorted(everything(module.train_dataloader())["image"][:, 0, 0, 0].tolist()) == [0, 1, 2]
    module = ready(ImageFolderDataModule(tmp_path, labels="imagenet", **small))
    assert everything(module.val_dataloader())["label"].tolist() == [2, 5, 5]
    (tmp_path / "set" / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no images, but would be a class"):
        ready(ImageFolderDataModule(tmp_path, labels="sorted", **small), "fit")


def test_folders_without_permission_are_named(tmp_path, monkeypatch):
    def refuse(path, *rest):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    class_folders(tmp_path, "train", ["cat"])
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        with pytest.raises(DataError, match=r"set/train cannot be read \(Permission denied\): repair or remove it"):
            folders(tmp_path).open("train")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.is_dir", refuse)
        with pytest.raises(
            DataError, match=r"set/train cannot be reached \(Permission denied\): make the folders above"
        ):
            folders(tmp_path).open("train")
    write(tmp_path / "imagenet", "val", [0])
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match=r"imagenet cannot be read \(Permission denied\): make it readable"):
        ready(ImageNetDataModule(tmp_path))


def class_folders(root, split, names):
    for name in names:
        folder = root / "set" / split / name
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(0))


def folders(root, labels="sorted", some_classes=False):
    return ImageFolderDataModule(
        root, PLAIN, WHOLE, labels=labels, batch_size=1, num_workers=0, name="set", some_classes=some_classes
    )


def plant(folder, names):
    """Write an image a name; a name without a known ending is no image."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value))


def both_doors(root):
    """Return the label of each image of a split ``val``, by its pixels, as plain folders and as shards say."""
    plain = ready(folders(root)).val_dataloader()
    shard_images(root / "set" / "val", root / "packed", "val", layout="class-folders")
    packed = ready(ImageNetDataModule(root, PLAIN, WHOLE, name="packed", **SMALL)).val_dataloader()
    columns = [everything(loader) for loader in (plain, packed)]
    return [dict(zip(c["image"][:, 0, 0, 0].tolist(), c["label"].tolist(), strict=True)) for c in columns]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([f"{n}/a.png" for n in range(12)], list(range(12))),
        ([f"{n:03d}/a.png" for n in range(12)], list(range(12))),
        (["10/a.png", "9/a.png", "1/a.png", "100/a.png"], [2, 1, 0, 3]),
        (["a/x.png", "a/deep/er/x.png", "b/images/x.png", "a.b/x.png"], [0, 0, 2, 1]),
        (["a/x.v1.png", "a/x.v2.png", "B/.hidden.png", ".c/x.png", "B/x.PNG", "a/x.txt"], [1, 1, None, None, 0, None]),
        (["Zebra/x.png", "ape/x.png", "10/x.png", "9/x.png", "\u00e9/x.png"], [2, 3, 0, 1, 4]),
    ],
)
def test_both_doors_find_the_same_images_and_number_them_alike(tmp_path, names, labels):
    plant(tmp_path / "set" / "val", names)
    expected = {value: label for value, label in enumerate(labels) if label is not None}
    assert both_doors(tmp_path) == [expected, expected]


@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "PPM", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_doors_read_what_pillow_reads(tmp_path, form, mode):
    endings = {"JPEG": "jpg jpe jfif jpeg", "TIFF": "tif tiff", "PPM": "ppm pgm pnm"}.get(form, form.lower()).split()
    # As a PNG it is much smaller than as a BMP, a TIFF or a PPM: the shard has another size than its source.
    blocks = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    image = Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))).convert(mode)
    for number, ending in enumerate(endings):
        (tmp_path / "set" / "val" / f"class{number}").mkdir(parents=True)
        image.save(tmp_path / "set" / "val" / f"class{number}" / f"x.{ending}", form)
    with Image.open(tmp_path / "set" / "val" / "class0" / f"x.{endings[0]}") as saved:
        expected = np.asarray(saved.convert("RGB"))
    for again in (False, True):
        packed = shard_images(tmp_path / "set" / "val", tmp_path / "packed", "val", layout="class-folders")
        assert (packed.images, packed.written) == (len(endings), 0 if again else 1)
    for module in (folders(tmp_path), ImageNetDataModule(tmp_path, PLAIN, WHOLE, name="packed", **SMALL)):
        found = everything(ready(module).val_dataloader())["image"]
        assert [np.array_equal(pixels.permute(1, 2, 0), expected) for pixels in found] == [True] * len(endings)


def test_numbers_are_read_as_numbers_with_a_word(tmp_path, caplog):
    plant(tmp_path / "set" / "val", ["1/a.png", "10/a.png", "2/a.png"])
    folders(tmp_path).open("val")
    assert "classes numbered in the order of their numbers: 1 is class 0, 10 is class 2" in caplog.text


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
    plant(tmp_path / "set" / "val", ["a/x.png", "a/y.heic", "a/z.heic", "b/x.png", "b/notes.txt", "loose.png"])
    folders(tmp_path).open("val")
    assert "not read are 4 other files (2 .heic, 1 .txt, 1 .png), such as a/y.heic" in caplog.text


def test_pixels_of_unknown_range_are_refused(tmp_path):
    (tmp_path / "set" / "val" / "a").mkdir(parents=True)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "set" / "val" / "a" / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif is broken \(it has 32 bits a pixel, whose range no file tells\)"):
        list(ready(folders(tmp_path)).val_dataloader())


def test_a_class_that_was_not_trained_on_is_refused(tmp_path):
    class_folders(tmp_path, "train", ["cat", "dog", "eel"])
    class_folders(tmp_path, "val", ["cat", "dog", "fox"])
    for some_classes in (False, True):
        with pytest.raises(UserError, match="'fox' is not among the other split's 3 classes: remove it"):
            ready(folders(tmp_path, some_classes=some_classes))


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("names", [("cat", "dog", "eel"), ("0", "1", "2")])
def test_some_of_the_classes_can_be_tested_on_at_both_doors(tmp_path, names, empty):
    class_folders(tmp_path, "train", names)
    class_folders(tmp_path, "val", names[1:2])
    if empty:
        (tmp_path / "set" / "val" / names[2]).mkdir()
    for stage in ("fit", "test"):
        with pytest.raises(UserError, match=rf"1 of the 3 classes of .*train, none of '{names[0]}': .* set some_"):
            ready(folders(tmp_path), stage)
    plain = ready(folders(tmp_path, some_classes=True), "fit")
    shard_images(tmp_path / "set" / "train", tmp_path / "packed", "train")
    arguments = (tmp_path / "set" / "val", tmp_path / "packed", "val", "class-folders")
    with pytest.raises(UserError, match="or add images|--some-classes where these are some of the same classes"):
        shard_images(*arguments)
    shard_images(*arguments, some_classes=True)
    packed = ready(ImageNetDataModule(tmp_path, PLAIN, WHOLE, name="packed", batch_size=1, **SMALL), "fit")
    for module in (plain, packed):
        assert everything(module.val_dataloader())["label"].tolist() == [1]
        (described,) = module.evaluation_sets.values()
        assert described.class_names == names
        module.check_classes(3)
    assert plain.evaluation_sets["set"].protocol["restricted"] == "1 of 3 classes"
    with pytest.raises(UserError, match="names no classes of another split: pack that one first"):
        shard_images(*arguments[:1], tmp_path / "new", *arguments[2:], some_classes=True)


def test_class_folders_may_be_links(tmp_path):
    class_folders(tmp_path, "train", ["cat"])
    (tmp_path / "set" / "train" / "dog").symlink_to(tmp_path / "set" / "train" / "cat")
    (tmp_path / "set" / "train" / "cat" / "b.png").symlink_to(tmp_path / "set" / "train" / "cat" / "a.png")
    assert folders(tmp_path).open("train").table.label.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("link", "target", "expected"),
    [
        ("train/cat/b.png", "gone.png", r"train/cat/b.png cannot be read \(No such file"),
        ("train/cat/b.png", "b.png", r"train/cat/b.png cannot be read \(Too many levels"),
        ("train/dog", "gone", r"train/dog cannot be read \(No such file"),
        ("train/cat/deep", ".", r"The link .*train/cat/deep leads to a folder that it lies in: remove"),
        ("train/cat/deep", "..", r"The link .*train/cat/deep leads to a folder that it lies in: remove"),
        ("train/cat/deep", "../../..", r"The link .*train/cat/deep leads to a folder that it lies in: remove"),
        ("train/all", ".", r"The link .*train/all leads to a folder that it lies in: remove"),
    ],
)
def test_links_that_lead_nowhere_or_back_are_named(tmp_path, link, target, expected):
    class_folders(tmp_path, "train", ["cat"])
    (tmp_path / "set" / link).symlink_to(target)
    with pytest.raises(DataError, match=expected):
        folders(tmp_path).open("train")
