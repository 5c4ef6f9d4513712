"""What a source is taken for: every layout that people have, as tiny made-up trees, and the forms of label files."""

from typing import get_args

import pytest

from lit_robust.cli import main
from lit_robust.core.errors import DataError, UserError
from lit_robust.data.packing.classes import given_numbers, labels_of, number_classes, parse_labels, stem
from lit_robust.data.packing.layouts import READERS, Options, find_images
from lit_robust.data.packing.recognise import Layout, cell_of, find_root, read_categories
from lit_robust.data.packing.sources import Tree
from lit_robust.reference import imagenet_names, imagenet_subset, imagenet_wnids

WNIDS = imagenet_wnids()


def plant(folder, names):
    """Make files of the given names; a name that ends with ``/`` is an empty folder."""
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"bytes of {name}".encode())
    return folder


def find(folder, layout="auto", split="val", labels="auto", label_file=None):
    return find_images(Tree(folder, str(folder)), layout, split, Options(labels, label_file, "imagenet"))


def labels_by_key(found):
    (only,) = found.sets
    return {image.key: image.label for image in only.images}


def test_class_folders(tmp_path):
    found = find(plant(tmp_path, ["b/2.JPEG", "a/x.y.png", "a/1.webp", "c/1.jpg", "c/images/2.jpg"]))
    assert labels_by_key(found) == {"a/1": 0, "a/x_y": 0, "b/2": 1, "c/1": 2, "c/2": 2}
    assert found.sets[0].class_names == ["a", "b", "c"]
    assert "layout class-folders, 5 images" in found.said


def test_what_is_not_packed_is_named(tmp_path):
    names = [
        "a/1.jpg",
        "b/1.jpg",
        "a/2.heic",
        "loose.jpg",
        "a/deep/er.jpg",
        "README.txt",
        ".DS_Store",
        ".checkpoints/1.jpg",
        "a/.2.jpg",
        "__MACOSX/._1.jpg",
    ]
    found = find(plant(tmp_path, names))
    assert found.left == ["README.txt", "a/2.heic", "loose.jpg"]
    assert labels_by_key(found) == {"a/1": 0, "a/deep/er": 0, "b/1": 1}


@pytest.mark.parametrize("empty", ["c/", "c/1.heic", "c/deep/"])
def test_a_class_without_images_is_refused(tmp_path, empty):
    with pytest.raises(UserError, match="c holds no images, but would be a class: remove it, or add images"):
        find(plant(tmp_path, ["a/1.jpg", "b/1.jpg", empty]))


def test_order_is_that_of_names_part_by_part(tmp_path):
    found = find(plant(tmp_path, ["a-b/1.jpg", "a/2.jpg", "a/10.jpg", "a.b/1.jpg"]))
    # As strings, "a-b/" and "a.b/" sort before "a/"; folders sort as their names.
    assert list(labels_by_key(found)) == ["a/10", "a/2", "a-b/1", "a.b/1"]


def test_tiny_imagenet(tmp_path):
    names = [f"train/{wnid}/images/{wnid}_{n}.JPEG" for wnid in ("n02124075", "n01443537") for n in (0, 1)]
    names += [f"train/{wnid}/{wnid}_boxes.txt" for wnid in ("n02124075", "n01443537")]
    names += ["val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG", "wnids.txt"]
    folder = plant(tmp_path / "tiny-imagenet-200", names)
    rows = ["val_1.JPEG\tn01443537\t0\t32\t44\t62", "val_0.JPEG\tn02124075\t52\t55\t57\t59"]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    train, val = find(tmp_path, split="train"), find(tmp_path, split="val")
    assert labels_by_key(train) == {f"{w}/{w}_{n}": k for k, w in enumerate(("n01443537", "n02124075")) for n in (0, 1)}
    assert labels_by_key(val) == {"val_0": 1, "val_1": 0}
    assert train.sets[0].class_names == val.sets[0].class_names == ["goldfish", "Egyptian cat"]
    assert "tiny-imagenet-200/val: layout tiny-imagenet-val, 2 images" in val.said
    assert train.left == [f"{w}/{w}_boxes.txt" for w in ("n01443537", "n02124075")]
    assert val.left == []
    assert labels_by_key(find(folder / "val")) == labels_by_key(val)


def test_imagenets_flat_validation_images(tmp_path):
    names = [f"ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3)]
    folder = plant(tmp_path / "images", names)
    csv = tmp_path / "LOC_val_solution.csv"
    rows = [
        f"{names[n][:-5]},{WNIDS[label]} 85 1 499 272 {WNIDS[label]} 1 2 3 4" for n, label in ((2, 7), (0, 999), (1, 5))
    ]
    csv.write_text("ImageId,PredictionString\n" + "\n".join(rows) + "\n")
    expected = {names[0][:-5]: 999, names[1][:-5]: 5, names[2][:-5]: 7}
    found = find(folder, label_file=csv)
    assert labels_by_key(found) == expected
    assert tuple(found.sets[0].class_names) == imagenet_names()
    in_order = tmp_path / "synsets.txt"
    in_order.write_text("".join(f"{WNIDS[label]}\n" for label in (999, 5, 7)))
    assert labels_by_key(find(folder, label_file=in_order)) == expected
    numbers = tmp_path / "val.txt"
    numbers.write_text("".join(f"some/where/{name} {expected[name[:-5]]}\n" for name in names))
    assert labels_by_key(find(folder, label_file=numbers)) == expected
    assert labels_by_key(find(folder, label_file=csv, labels="sorted")) == dict(zip(expected, (2, 0, 1), strict=True))
    (folder / names[1]).unlink()
    fewer = find(folder, label_file=csv)
    assert labels_by_key(fewer) == {names[0][:-5]: 999, names[2][:-5]: 7}
    assert "1 names of the label file have no image" in fewer.said
    with pytest.raises(UserError, match="give a --label-file"):
        find(folder)


def test_imagenet_c(tmp_path):
    cells = [("blur", "defocus_blur", 1), ("blur", "defocus_blur", 5), ("weather", "fog", 3)]
    names = [f"{g}/{c}/{s}/{WNIDS[k]}/ILSVRC2012_val_{k}.JPEG" for g, c, s in cells for k in (3, 8)]
    plant(tmp_path, [*names, "blur/other/1/x/1.jpg", "notes.txt"])
    found = find(tmp_path, labels="imagenet")
    assert [part.folder for part in found.sets] == ["defocus_blur/1", "defocus_blur/5", "fog/3"]
    for part in found.sets:
        assert {image.key: image.label for image in part.images} == {
            f"{WNIDS[k]}/ILSVRC2012_val_{k}": k for k in (3, 8)
        }
        assert all(image.file.name.split("/")[1:3] == part.folder.split("/") for image in part.images)
    assert found.left == ["blur/other/1/x/1.jpg", "notes.txt"]
    one = find(tmp_path / "weather")
    assert [part.folder for part in one.sets] == ["fog/3"]
    assert [part.folder for part in find(tmp_path / "weather" / "fog" / "..").sets] == ["fog/3"]


def test_imagenet_c_with_cells_of_different_size_is_refused(tmp_path):
    plant(tmp_path, ["fog/1/n0/a.JPEG", "fog/1/n0/b.JPEG", "fog/2/n0/a.JPEG"])
    with pytest.raises(DataError, match="fog/2 .* has 1 images, where other cells have 2"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-o"])
def test_imagenet_a_and_o_have_imagenets_numbers(tmp_path, name):
    numbers = imagenet_subset(name)
    folder = plant(tmp_path, [f"{name}/{WNIDS[n]}/0.5.jpg" for n in numbers] + [f"{name}/README.txt"])
    found = find(folder, split="test")
    assert f"layout {name}, 200 images, classes numbered as ImageNet's 1,000" in found.said
    assert labels_by_key(found) == {f"{WNIDS[n]}/0_5": n for n in numbers}
    assert len(found.sets[0].class_names) == 1000
    assert found.left == ["README.txt"]
    few = plant(tmp_path / "few", [f"{WNIDS[n]}/1.jpg" for n in numbers[:2]])
    assert set(labels_by_key(find(few, layout=name)).values()) == set(numbers[:2])
    assert set(labels_by_key(find(few)).values()) == {0, 1}


def test_folders_named_by_numbers_keep_them(tmp_path):
    # ImageNet-V2's folders, which torchvision's ImageFolder would number 0, 1, 10, 11, 2.
    found = find(plant(tmp_path, [f"{n}/x.jpeg" for n in range(12)]))
    assert labels_by_key(found) == {f"{n}/x": n for n in range(12)}


def test_wnid_names(tmp_path):
    found = find(plant(tmp_path, [f"sample/{WNIDS[9]}_ostrich.JPEG", f"sample/{WNIDS[2]}_great.white.JPEG"]))
    assert labels_by_key(found) == {f"{WNIDS[2]}_great_white": 2, f"{WNIDS[9]}_ostrich": 9}
    with pytest.raises(UserError, match="'n99999999' is not one of ImageNet's"):
        find(plant(tmp_path / "other", ["n99999999_x.JPEG"]))


def test_cue_conflict(tmp_path):
    found = find(plant(tmp_path, ["bear/bear1-car2.png", "cue/x.txt", "car/car3-car3.png", "car/car10-dog1.png"]))
    assert labels_by_key(found) == {"bear/bear1-car2": 0, "car/car10-dog1": 1, "car/car3-car3": 1}
    assert len(found.sets[0].categories) == 16
    with pytest.raises(DataError, match="lies in the folder of dog, but its name says car"):
        find(plant(tmp_path, ["dog/car1-bear1.png"]), layout="cue-conflict")


@pytest.mark.parametrize("root", ["", "tiny-imagenet-200/"])
def test_the_test_images_of_tiny_imagenet_have_no_classes(tmp_path, root):
    wnids = ("n02124075", "n01443537")
    plant(tmp_path, [f"{root}train/{wnid}/images/{wnid}_0.JPEG" for wnid in wnids])
    plant(tmp_path, [f"{root}test/images/test_{n}.JPEG" for n in (0, 10)])
    sentence = "are the test images of Tiny-ImageNet, whose classes were never published: pack its validation images"
    with pytest.raises(UserError, match=sentence):
        find(tmp_path, split="test")


@pytest.mark.parametrize(
    "content",
    [
        '{"a": "12"}',
        '{"a": [1.7]}',
        '{"a": [true]}',
        '{"a": ["1"]}',
        '{"a": {"1": 2}}',
        '{"a": [1], "a": [2]}',
        '{"a": [-1, 2]}',
        '{"a": []}',
        '{"a": [1], "b": [1]}',
        '[["a", [1]]]',
        "{}",
        "{",
        "[" * 100_000,
    ],
)
def test_odd_categories_are_refused(tmp_path, content):
    file = tmp_path / "categories.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"The categories file .* cannot be read \(.*\): it must be JSON"):
        read_categories(str(file))
    file.write_text('{"b": [3, 0], "a": [2]}')
    assert read_categories(str(file)) == {"a": (2,), "b": (3, 0)}


def test_categories_of_a_recipe_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = read_categories("configs/tiny-imagenet/categories-26.json")
    assert (len(there), sum(map(len, there.values()))) == (11, 26)
    # A file of one's own comes first.
    (tmp_path / "configs" / "tiny-imagenet").mkdir(parents=True)
    (tmp_path / "configs" / "tiny-imagenet" / "categories-26.json").write_text('{"a": [1]}')
    assert read_categories("configs/tiny-imagenet/categories-26.json") == {"a": (1,)}


def test_a_label_file_that_numbers_from_one(tmp_path):
    folder = plant(tmp_path / "images", ["1.jpg", "2.jpg", "3.jpg"])
    numbers = tmp_path / "labels.txt"
    numbers.write_text("1.jpg 1\n2.jpg 2\n3.jpg 3\n")
    with pytest.raises(UserError, match="numbered 1 to 3, but a network's are numbered from 0: subtract 1 from each"):
        find(folder, label_file=numbers)
    assert labels_by_key(find(folder, label_file=numbers, labels="sorted")) == {"1": 1, "2": 2, "3": 3}
    numbers.write_text("1.jpg 1\n2.jpg 2\n3.jpg 1000\n")
    assert labels_by_key(find(folder, label_file=numbers)) == {"1": 1, "2": 2, "3": 1000}
    with pytest.raises(UserError, match="1000 is not one of ImageNet's 1,000, numbered from 0 to 999: subtract 1"):
        find(folder, label_file=numbers, labels="imagenet")


def test_every_layout_is_on_the_command_line_and_has_a_reader(capsys):
    assert {"auto", *READERS} == set(get_args(Layout))
    with pytest.raises(SystemExit):
        main(["data", "shard", "--help"])
    assert f"{{{','.join(get_args(Layout))}}}" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("names", "split", "root"),
    [
        (["train/a/1.jpg", "val/a/1.jpg"], "val", "val/"),
        (["x/train/a/1.jpg", "x/validation/a/1.jpg"], "val", "x/validation/"),
        (["val/1.jpg", "bus/1.jpg"], "val", ""),
        (["train/1.jpg", "bus/1.jpg"], "train", ""),
        (["n01443537/1.JPEG"], "train", ""),
        (["cat/images/1.JPEG"], "train", ""),
        (["x/cat/images/1.JPEG"], "train", "x/"),
        (["bear/bear1-car2.png"], "test", ""),
        (["fog/3/n01443537/1.JPEG"], "val", ""),
        (["a/b/c/d/1.jpg"], "val", "a/b/c/"),
        ([], "val", ""),
    ],
)
def test_the_folder_that_holds_a_split(names, split, root):
    assert find_root(names, split, annotated=(), labelled=False) == root


@pytest.mark.parametrize("name", ["fog/6/n0/1.jpg", "frog/1/n0/1.jpg", "fog/1/1.jpg", "fog/1/n0/x/1.jpg"])
def test_paths_that_are_of_no_cell(name):
    assert cell_of(name) is None


@pytest.mark.parametrize(
    ("names", "arguments", "expected"),
    [
        (["a/1.heic"], {}, "holds no jpg, jpeg, png, webp"),
        (["1/1.jpg", "01/1.jpg"], {}, "The classes '01' and '1' are one number: rename one"),
        (["a/1.jpg"], {}, "All images of .* lie in a: give --layout class-folders"),
        (["a/1.jpg", "a/1.cls"], {}, "members: read the shards as they are"),
        (
            ["1/n01440764/a.jpg", "5/n01443537/a.jpg"],
            {},
            "The folders 1, 5 of .* as the severities of one corruption do",
        ),
        (
            ["c/fog/1/n01440764/a.jpg", "a/n01440764/a.jpg"],
            {},
            "holds a besides the cells of ImageNet-C: pack the folder",
        ),
        (["1.jpg"], {"layout": "class-folders"}, "No images in .* in the layout class-folders"),
        (["1.jpg"], {"layout": "flat"}, "name their classes by --label-file"),
        (["a/1.jpg"], {"layout": "tiny-imagenet-val"}, "has no val_annotations.txt"),
        (
            ["a/1.jpg", "b/1.jpg"],
            {"labels": "imagenet"},
            "'a' is not one of ImageNet's 1,000 WordNet ids: set labels to",
        ),
    ],
)
def test_sources_that_are_refused(tmp_path, names, arguments, expected):
    with pytest.raises(UserError, match=expected):
        find(plant(tmp_path, names), **arguments)


def test_a_link_that_leads_round_is_refused(tmp_path):
    plant(tmp_path, ["a/1.jpg"])
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads to a folder that it lies in"):
        find(tmp_path)


def test_linked_classes_are_followed(tmp_path):
    plant(tmp_path, ["real/1.jpg", "set/b/1.jpg"])
    (tmp_path / "set" / "a").symlink_to(tmp_path / "real")
    assert labels_by_key(find(tmp_path / "set")) == {"a/1": 0, "b/1": 1}
    (tmp_path / "set" / "b" / "2.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"2\.jpg cannot be read \(No such file"):
        find(tmp_path / "set")


NAMES = ["a.JPEG", "b.JPEG"]


@pytest.mark.parametrize(
    "text",
    [
        "a.JPEG n01440764\nb.JPEG n01443537\n",
        "b n01443537\r\na n01440764\r\n\r\n",
        "ImageId,PredictionString\na,n01440764 1 2 3 4 \nb,n01443537 1 2 3 4\n",
        "images/a.jpg\tn01440764\t0\t1\nimages/b.jpg\tn01443537\t0\t1",
        "n01440764\nn01443537\n",
    ],
)
def test_known_forms(text):
    assert labels_of(NAMES, parse_labels(text, "file", NAMES), "file") == ["n01440764", "n01443537"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("ImageId,PredictionString\n", "is empty"),
        ("490\n361\n", "bare numbers, and those of ILSVRC's development kit are ILSVRC ids"),
        ("n01440764\n", "has 1 WordNet ids for 2 images"),
        ("n01440764\ndog\n", "has 'dog' among WordNet ids"),
        ("a.JPEG n01440764\nb.JPEG\n", "Line 2 of the label file file is 'b.JPEG': write the image's name and its"),
        ("a n01440764\n\nb dog\n", "Line 3 of the label file file is 'b dog'"),
        ("a n01440764\na.JPEG n01443537\n", r"Line 2 of the label file file names a\.JPEG again"),
        ("a n01440764\nb 1\n", "mixes WordNet ids and numbers"),
        ("a -1\nb 0\n", "Line 1"),
        ("a n01440764\nc n01443537\n", r"no line for 1 of 2 images, the first is b\.JPEG"),
    ],
)
def test_broken_files_are_named_with_the_place(text, expected):
    with pytest.raises(DataError, match=expected):
        labels_of(NAMES, parse_labels(text, "file", NAMES), "file")


def test_stems_keep_dots_that_begin_no_ending():
    assert [stem(name) for name in ("x/a.b.JPEG", "a.b", "a")] == ["a.b", "a.b", "a"]


@pytest.mark.parametrize(
    ("classes", "labels", "known", "numbers", "rule"),
    [
        (["0", "1", "2"], "auto", (), [0, 1, 2], "numbered as their names say"),
        (["0", "1"], "sorted", (), [0, 1], "numbered as their names say"),
        (
            ["1", "10", "9"],
            "auto",
            (),
            [0, 2, 1],
            "numbered in the order of their numbers: 1 is class 0, 10 is class 2",
        ),
        (["3", "9"], "imagenet", (), [3, 9], "numbered as their names say, ImageNet's 1,000"),
        (["ape", "bear"], "sorted", (), [0, 1], "numbered by their sorted names"),
        ([WNIDS[3], WNIDS[9]], "imagenet", (), [3, 9], "numbered as ImageNet's 1,000"),
        (
            [WNIDS[3], WNIDS[9]],
            "auto",
            (),
            [0, 1],
            "numbered by their sorted names, 0 to 1; all are ImageNet's: a network of its 1,000 needs --labels "
            "imagenet here",
        ),
        ([WNIDS[3], "zebra"], "auto", (), [0, 1], "numbered by their sorted names"),
        (WNIDS, "auto", (), list(range(1000)), "numbered as ImageNet's 1,000"),
        (WNIDS[::2], "sorted", (), list(range(500)), "numbered by their sorted names"),
        (["dog"], "auto", ["cat", "dog"], [1], "numbered as the 2 of the other split"),
        ([WNIDS[9]], "auto", ["cat", imagenet_names()[9]], [1], "numbered as the 2 of the other split"),
        (["9"], "auto", ["2", "9", "10"], [1], "numbered as the 3 of the other split"),
    ],
)
def test_class_numbers(classes, labels, known, numbers, rule):
    found = number_classes(classes, labels, known)
    assert [found.numbers[name] for name in classes] == numbers
    assert found.rule == rule


@pytest.mark.parametrize(
    ("classes", "known", "expected"),
    [
        (["01", "1"], (), "The classes '01' and '1' are one number: rename one"),
        (["02", "1", "2"], (), "The classes '02' and '2' are one number: rename one"),
        (
            ["ant", "dog", "fox"],
            ["cat", "dog"],
            "'ant' is not among the other split's 2 classes: remove it",
        ),
    ],
)
def test_class_numbers_that_are_refused(classes, known, expected):
    with pytest.raises(UserError, match=expected):
        number_classes(classes, "auto", known)


def test_numbers_stay():
    assert given_numbers(["0", "12", "7"], "auto").numbers == {"0": 0, "12": 12, "7": 7}
    assert len(given_numbers(list(map(str, range(1000))), "auto").names) == 1000
    assert len(given_numbers(["7"], "imagenet").names) == 1000
    # Counted one by one up to the highest, these would take all memory.
    assert given_numbers(["1", "9" * 18], "auto").numbers == {"1": 1, "9" * 18: 10**18 - 1}
    with pytest.raises(UserError, match="Class 1000 is not one of ImageNet's"):
        given_numbers(["1000"], "imagenet")
