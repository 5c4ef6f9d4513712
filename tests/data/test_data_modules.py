"""Every data module on tiny shards in its set's layout: which samples it delivers, labelled and grouped how."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_sets import PLAIN, SMALL, WHOLE, cue_conflict, everything, loaded, png, ready, write

from lit_robust.core.errors import DataError, UserError
from lit_robust.data import (
    CueConflictDataModule,
    ImageNetADataModule,
    ImageNetCDataModule,
    ImageNetCLikeDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    JoinedDataModule,
    Reading,
    RestrictedImageNetDataModule,
    RobustnessSuite,
    StylizedImageNetDataModule,
)
from lit_robust.data.packing.corrupting import CELLS
from lit_robust.reference import imagenet_subset, restricted_imagenet
from lit_robust.shards import ShardWriter
from lit_robust.stimuli.corruption_names import CORRUPTIONS
from lit_robust.stimuli.corruptions import corrupt


def test_stylized_imagenet_has_a_name_and_folder_of_its_own(tmp_path):
    write(tmp_path / "stylized-imagenet", "val", [3, 5])
    module = ready(StylizedImageNetDataModule(tmp_path, evaluation=WHOLE, **SMALL))
    assert list(module.evaluation_sets) == ["stylized-imagenet"]
    assert loaded(module)["label"].tolist() == [3, 5]


def test_joined_sets_are_trained_on_in_one_order_and_tested_apart(tmp_path):
    write(tmp_path / "imagenet", "train", [0] * 5)
    write(tmp_path / "imagenet", "val", [0] * 2)
    write(tmp_path / "stylized-imagenet", "train", [1] * 7)
    write(tmp_path / "stylized-imagenet", "val", [1] * 3)
    small = {"training": PLAIN, "evaluation": WHOLE, "batch_size": 4, **SMALL}
    module = JoinedDataModule([ImageNetDataModule(**small), StylizedImageNetDataModule(**small)], root=tmp_path)
    module.setup("fit")
    found = everything(module.train_dataloader())
    assert sorted(found["index"].tolist()) == list(range(12))
    by_number = dict(
        zip(found["index"].tolist(), zip(found["label"], found["image"][:, 0, 0, 0], strict=True), strict=True)
    )
    assert [int(by_number[n][0]) for n in range(12)] == [0] * 5 + [1] * 7
    assert [int(by_number[n][1]) for n in range(12)] == [*range(5), *range(7)]
    # One order over both: neither set comes in one piece.
    assert np.count_nonzero(np.diff(found["label"].numpy())) > 1
    module.setup("test")
    assert {name: described.count for name, described in module.evaluation_sets.items()} == {
        "imagenet": 2,
        "stylized-imagenet": 3,
    }
    assert len(everything(module.val_dataloader())["label"]) == 2


def test_imagenet_c_is_one_loader_whose_samples_carry_their_cell(tmp_path):
    for corruption in ("fog", "saturate"):
        for severity in (2, 5):
            write(tmp_path / "imagenet-c" / corruption / str(severity), "val", [7, 8, 9])
    module = ready(ImageNetCDataModule(tmp_path, ["fog", "saturate"], [2, 5], **SMALL))
    found = loaded(module)
    described = module.evaluation_sets["imagenet-c"]
    names = [described.groups[group] for group in found["group"].tolist()]
    assert names == ["fog/2"] * 3 + ["fog/5"] * 3 + ["saturate/2"] * 3 + ["saturate/5"] * 3
    assert tuple(described.groups) == CELLS
    assert len(CELLS) == 95
    assert found["label"].tolist() == [7, 8, 9] * 4
    assert found["image"][:, 0, 0, 0].tolist() == [0, 1, 2] * 4
    assert described.count == 12
    assert described.protocol["images_a_cell"] == 3
    assert described.protocol["resize"] is None


def test_imagenet_c_takes_the_papers_fifteen_and_names_what_is_missing(tmp_path):
    write(tmp_path / "imagenet-c" / "gaussian_noise" / "1", "val", [7])
    with pytest.raises(UserError, match="imagenet-c lacks 74 of 75 cells, the first is gaussian_noise/2: copy them"):
        ready(ImageNetCDataModule(tmp_path, **SMALL))
    assert len(ImageNetCDataModule(tmp_path).cells) == 75
    with pytest.raises(UserError, match=r"corruptions is \['rain'\]: name some of gaussian_noise"):
        ImageNetCDataModule(tmp_path, ["rain"])
    with pytest.raises(UserError, match=r"severities is \[0\]: name some of 1, 2, 3, 4, 5"):
        ImageNetCDataModule(tmp_path, severities=[0])


def test_imagenet_c_by_null_is_what_there_is_of_it(tmp_path, caplog):
    folder = tmp_path / "imagenet-c"
    for corruption in CORRUPTIONS:
        for severity in (1, 3):
            write(folder / corruption / str(severity), "val", [7])
    module = ready(ImageNetCDataModule(tmp_path, None, [1, 3], **SMALL))
    assert module.evaluation_sets["imagenet-c"].count == 15 * 2
    assert not caplog.records
    write(folder / "spatter" / "3", "val", [7])
    shutil.rmtree(folder / "fog" / "1")
    cells = ready(ImageNetCDataModule(tmp_path, None, None, **SMALL)).evaluation_sets["imagenet-c"].protocol["cells"]
    assert set(cells) == {f"{name}/{severity}" for name in CORRUPTIONS for severity in (1, 3)} - {"fog/1"} | {
        "spatter/3"
    }
    assert (
        f"{folder}: 46 of 75 cells are not there, the first is gaussian_noise/2, so there is no mean over all corru"
        in caplog.text
    )
    with pytest.raises(UserError, match="imagenet-c has no folder <corruption>/<severity>, such as gaussian_noise/5"):
        ready(ImageNetCDataModule(tmp_path, None, [5], **SMALL))


def test_imagenet_c_cells_of_different_length_are_refused(tmp_path):
    write(tmp_path / "imagenet-c/fog/1", "val", [7, 8])
    write(tmp_path / "imagenet-c/fog/2", "val", [7])
    with pytest.raises(DataError, match=r"fog/2 \(val\) holds 1 images, but .*fog/1 \(val\) 2, or of other classes"):
        ready(ImageNetCDataModule(tmp_path, ["fog"], [1, 2], **SMALL))


def test_imagenet_c_is_restricted_to_a_file_of_names(tmp_path):
    keys = [f"n0144/ILSVRC2012_val_0000000{number}" for number in range(4)]
    write(tmp_path / "imagenet-c/fog/1", "val", [0, 1, 2, 3], keys=keys)
    names = tmp_path / "ids.txt"
    names.write_text("n0144/ILSVRC2012_val_00000003.JPEG\nn0144/ILSVRC2012_val_00000001.JPEG\n")
    module = ready(ImageNetCDataModule(tmp_path, ["fog"], [1], subset=names, **SMALL))
    assert loaded(module)["label"].tolist() == [1, 3]
    names.write_text("ILSVRC2012_val_00000009\n")
    with pytest.raises(DataError, match="lacks 1 of the subset's 1 images, the first is ILSVRC2012_val_00000009"):
        ready(ImageNetCDataModule(tmp_path, ["fog"], [1], subset=names, **SMALL))


def test_benchmarks_of_imagenet_cs_form(tmp_path):
    for cell in ("sparkles/1", "sparkles/4"):
        write(tmp_path / "imagenet-c-bar" / cell, "val", [0, 1])
    module = ImageNetCDataModule(tmp_path, "imagenet-c-bar", None, name="imagenet-c-bar", **SMALL)
    found = loaded(ready(module))
    groups = module.evaluation_sets["imagenet-c-bar"].groups
    assert len(groups) == 50
    assert [groups[group] for group in found["group"].tolist()] == ["sparkles/1"] * 2 + ["sparkles/4"] * 2
    assert "48 of 50 cells are not there" in module.evaluation_sets["imagenet-c-bar"].protocol["lacking_cells"]
    with pytest.raises(UserError, match="corruptions is 'imagenet-c-baz', did you mean imagenet-c-bar"):
        ImageNetCDataModule(tmp_path, "imagenet-c-baz")


def test_generated_images_cannot_pass_for_imagenet_c(tmp_path):
    for name in ("imagenet-c", "imagenet-c-like"):
        folder = tmp_path / name / "fog" / "1"
        folder.mkdir(parents=True)
        (folder / "_info.json").write_text(json.dumps({"generated": {"seed": 0}, "splits": {}}))
        write(folder, "val", [7])
    with pytest.raises(UserError, match="its results are not ImageNet-C's"):
        ready(ImageNetCDataModule(tmp_path, ["fog"], [1], **SMALL))
    module = ready(ImageNetCDataModule(tmp_path, ["fog"], [1], name="imagenet-c-like", **SMALL))
    assert list(module.evaluation_sets) == ["imagenet-c-like"]


def test_images_are_corrupted_as_they_are_loaded(tmp_path):
    write(tmp_path / "imagenet", "val", [4, 5, 6], size=16)
    settings = {"crop": WHOLE, "seed": 3, **SMALL}
    module = ready(ImageNetCLikeDataModule(tmp_path, ["contrast", "gaussian_noise"], [1, 3], **settings))
    found = loaded(module)
    cells = ["contrast/1", "contrast/3", "gaussian_noise/1", "gaussian_noise/3"]
    assert [CELLS[group] for group in found["group"].tolist()] == cells * 3
    assert found["label"].tolist() == [4] * 4 + [5] * 4 + [6] * 4
    clean = torch.stack([torch.tensor([n, 0, 7], dtype=torch.uint8) for n in range(3)])[:, :, None, None].expand(
        3, 3, 16, 16
    )
    assert torch.equal(found["image"][1::4], corrupt(clean.contiguous(), "contrast", 3, [0, 0, 0]))
    # Whatever the batch size and workers, the noise is the same; of another image or seed it differs.
    again = ready(
        ImageNetCLikeDataModule(tmp_path, ["gaussian_noise"], [3], crop=WHOLE, seed=3, eval_batch_size=1, num_workers=1)
    )
    assert torch.equal(loaded(again)["image"], found["image"][3::4])
    other = ready(ImageNetCLikeDataModule(tmp_path, ["gaussian_noise"], [3], crop=WHOLE, seed=4, **SMALL))
    assert not torch.equal(loaded(other)["image"], found["image"][3::4])
    protocol = module.evaluation_sets["imagenet-c-like"].protocol
    assert protocol["corrupted"] == "as loaded; ImageNet-C-like, not ImageNet-C"


def test_imagenet_a_keeps_imagenets_numbers_and_names_its_classes(tmp_path):
    write(tmp_path / "imagenet-a", "test", [6, 11, 988])
    module = ready(ImageNetADataModule(tmp_path, evaluation=WHOLE, **SMALL))
    assert loaded(module)["label"].tolist() == [6, 11, 988]
    assert module.evaluation_sets["imagenet-a"].classes == imagenet_subset("imagenet-a")
    with pytest.raises(UserError, match="has 200 classes, but a choice of ImageNet's 1000 is taken"):
        module.check_classes(200)


def test_imagenet_a_refuses_labels_from_0_to_199(tmp_path):
    write(tmp_path / "imagenet-a", "test", [0, 1, 199], num_classes=200)
    with pytest.raises(DataError, match="in class 0, not one of imagenet-a's 200: pack the shards with"):
        ready(ImageNetADataModule(tmp_path, **SMALL))


def test_imagenet_o_joins_its_images_with_validation_images_of_the_same_classes(tmp_path):
    write(tmp_path / "imagenet-o", "test", [70, 1])
    write(tmp_path / "imagenet", "val", [0, 1, 2, 51, 51, 999])
    module = ready(ImageNetODataModule(tmp_path, evaluation=WHOLE, **SMALL))
    found = loaded(module)
    assert found["label"].tolist() == [1, 51, 51, -1, -1]
    assert found["group"].tolist() == [0, 0, 0, 1, 1]
    assert found["image"][:, 0, 0, 0].tolist() == [1, 3, 4, 0, 1]
    described = module.evaluation_sets["imagenet-o"]
    assert described.groups == ("in-distribution", "out-of-distribution")
    assert described.protocol["in_distribution"]["count"] == 3
    module.check_classes(1000)


def test_restricted_imagenet_selects_and_relabels(tmp_path):
    labels = [150, 151, 268, 269, 281, 33, 37, 319, 0, 121]
    for split in ("train", "val"):
        write(tmp_path / "imagenet", split, labels)
    module = ready(
        RestrictedImageNetDataModule(tmp_path, training=PLAIN, evaluation=WHOLE, batch_size=7, **SMALL), "fit"
    )
    found = everything(module.val_dataloader())
    names = list(restricted_imagenet())
    assert [names[label] for label in found["label"]] == ["dog", "dog", "cat", "turtle", "turtle", "insect", "crab"]
    assert found["image"][:, 0, 0, 0].tolist() == [1, 2, 4, 5, 6, 7, 9]
    module.check_classes(9)
    with pytest.raises(UserError, match="give --model.network.num_classes 9"):
        module.check_classes(1000)
    trained = everything(module.train_dataloader())
    assert sorted(trained["image"][:, 0, 0, 0].tolist()) == [1, 2, 4, 5, 6, 7, 9]


def test_cue_conflict_images_outside_the_categories_are_left_out_and_said_so(tmp_path):
    cue_conflict(tmp_path)
    categories = tmp_path / "categories.json"
    categories.write_text('{"bear": [1], "car": [0, 2], "dog": [3]}')
    module = ready(CueConflictDataModule(tmp_path, str(categories), **SMALL))
    found = loaded(module)
    assert found["label"].tolist() == [0, 1, 2]
    assert found["texture"].tolist() == [1, 1, 0]
    assert found["image"][:, 0, 0, 0].tolist() == [0, 1, 3]
    assert module.evaluation_sets["cue-conflict"].protocol["restricted"].startswith("3 of 4 images")


def test_a_suite_names_its_sets_and_leaves_out_a_missing_one_only_when_told(tmp_path):
    write(tmp_path / "imagenet", "val", [6, 7])
    write(tmp_path / "imagenet-a", "test", [6])
    members = [
        ImageNetDataModule(evaluation=WHOLE, **SMALL),
        ImageNetADataModule(evaluation=WHOLE, **SMALL),
        ImageNetODataModule(evaluation=WHOLE, **SMALL),
    ]
    with pytest.raises(UserError, match="imagenet-o, which this recipe tests on: .* by --data.missing skip"):
        RobustnessSuite(members, tmp_path).setup("test")
    suite = RobustnessSuite(members, tmp_path, missing="skip")
    suite.setup("test")
    assert list(suite.evaluation_sets) == list(suite.test_dataloader()) == ["imagenet", "imagenet-a"]
    assert suite.missing_sets == {"imagenet-o": f"there is no folder {tmp_path / 'imagenet-o'}"}


def test_a_suite_never_leaves_out_a_defective_set(tmp_path):
    write(tmp_path / "imagenet", "val", [6, 7])
    (shard,) = (tmp_path / "imagenet").glob("*.tar")
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match="defective"):
        RobustnessSuite([ImageNetDataModule(**SMALL)], tmp_path, missing="skip").setup("test")


def test_a_suite_refuses_two_sets_of_one_name():
    with pytest.raises(UserError, match="Two members of the suite name a test set 'imagenet'"):
        RobustnessSuite([ImageNetDataModule(), ImageNetDataModule()])


def test_sizes_of_all_members_of_a_suite():
    """One option in place of a list of members: for another number of GPUs, or a smaller machine."""
    members = [ImageNetDataModule(batch_size=8), CueConflictDataModule(num_workers=3)]
    told = RobustnessSuite(members, batch_size=32, num_workers=0).members
    assert (told[0].batch_size, told[0].eval_batch_size) == (32, ImageNetDataModule().eval_batch_size)
    assert [member.num_workers for member in told] == [0, 0]
    assert [member.num_workers for member in members] == ["auto", 3]
    joined = JoinedDataModule([ImageNetDataModule(), StylizedImageNetDataModule()], eval_batch_size=5)
    assert [member.eval_batch_size for member in joined.members] == [5, 5]
    with pytest.raises(UserError, match="batch_size is 0: give 1 or more"):
        RobustnessSuite(members, batch_size=0)


def test_blocks_need_at_least_one_sample():
    with pytest.raises(UserError, match=r"reading.block is 0: give 1 or more"):
        Reading(block=0)


def test_a_sample_that_lost_its_class_is_named_or_left_out_and_counted(tmp_path):
    with ShardWriter(tmp_path / "imagenet", "val", num_classes=5) as writer:
        for number in range(5):
            members = {"png": png(number), "cls": b"%d" % number}
            writer.write(f"s{number}", {"png": members["png"]} if number == 3 else members)
    with pytest.raises(DataError, match=r"1 of 5 samples .* the first is s3 at byte \d+ of imagenet-val-0000.tar"):
        ready(ImageNetDataModule(tmp_path, evaluation=WHOLE, **SMALL))
    reading = Reading(on_error="skip")
    module = ready(ImageNetDataModule(tmp_path, evaluation=WHOLE, reading=reading, **SMALL))
    assert loaded(module)["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 4]
    assert module.evaluation_sets["imagenet"].count == 4
    assert module.evaluation_sets["imagenet"].protocol["skipped"] == "1 samples without a class"
