"""Plain folders of images: what is a class, which links are followed, and what is refused."""

import errno

import pytest
from tiny_sets import PLAIN, SMALL, WHOLE, everything, png, ready, write

from lit_robust.core.errors import DataError, UserError
from lit_robust.data import ImageFolderDataModule, ImageNetDataModule
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
    module = ready(ImageFolderDataModule(tmp_path, "sorted", **small), "fit")
    found = everything(module.val_dataloader())
    assert found["label"].tolist() == [0, 1, 1]
    assert found["image"][:, 0, 0, 0].tolist() == [2, 0, 1]
    assert sorted(everything(module.train_dataloader())["image"][:, 0, 0, 0].tolist()) == [0, 1, 2]
    module = ready(ImageFolderDataModule(tmp_path, "imagenet", **small))
    assert everything(module.val_dataloader())["label"].tolist() == [2, 5, 5]
    (tmp_path / "set" / "val" / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no images, but would be a class"):
        ready(ImageFolderDataModule(tmp_path, "sorted", **small))


def test_folders_without_permission_are_named(tmp_path, monkeypatch):
    def refuse(path, *rest):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    class_folders(tmp_path, "train", ["cat"])
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        with pytest.raises(DataError, match=r"The folder .*set/train cannot be listed \(Permission denied\): make it"):
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


def folders(root, labels="sorted"):
    return ImageFolderDataModule(root, labels, PLAIN, WHOLE, batch_size=1, num_workers=0, name="set")


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        (
            ["cat", "fox"],
            r"set/val has 'fox' as class 1, but .*set/train has 'dog' as class 1: both must have the same classes",
        ),
        (["cat"], r"set/val has no class 1, but .*set/train has 'dog'"),
        (["ant", "cat", "dog"], r"set/val has 'ant' as class 0, but .*set/train has 'cat'"),
        (["cat", "dog", "eel"], r"set/val has 'eel' as class 2, but .*set/train has no class 2"),
    ],
)
def test_folders_of_other_classes_are_not_validated_on(tmp_path, validation, expected):
    class_folders(tmp_path, "train", ["cat", "dog"])
    class_folders(tmp_path, "val", validation)
    for stage in ("fit", "test"):
        with pytest.raises(UserError, match=expected):
            ready(folders(tmp_path), stage)


def test_class_folders_may_be_links(tmp_path):
    class_folders(tmp_path, "train", ["cat"])
    (tmp_path / "set" / "train" / "dog").symlink_to(tmp_path / "set" / "train" / "cat")
    (tmp_path / "set" / "train" / "cat" / "b.png").symlink_to(tmp_path / "set" / "train" / "cat" / "a.png")
    assert folders(tmp_path).open("train").table.label.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("link", "target", "expected"),
    [
        ("train/cat/b.png", "gone.png", r"The link .*train/cat/b.png cannot be followed \(No such file"),
        ("train/cat/b.png", "b.png", r"The link .*train/cat/b.png cannot be followed \(Too many levels"),
        ("train/dog", "gone", r"The link .*train/dog cannot be followed \(No such file"),
        ("train/cat/deep", ".", r"The link .*train/cat/deep leads back to a folder that it lies in: remove"),
        ("train/cat/deep", "..", r"The link .*train/cat/deep leads back to a folder that it lies in: remove"),
        ("train/cat/deep", "../../..", r"The link .*train/cat/deep leads back to a folder that it lies in: remove"),
        ("train/all", ".", r"The link .*train/all leads back to a folder that it lies in: remove"),
    ],
)
def test_links_that_lead_nowhere_or_back_are_named(tmp_path, link, target, expected):
    class_folders(tmp_path, "train", ["cat"])
    (tmp_path / "set" / link).symlink_to(target)
    with pytest.raises(DataError, match=expected):
        folders(tmp_path).open("train")
