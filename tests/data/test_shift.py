import json

import numpy as np
import pytest
import torch

from lit_robust.core.errors import DataError, UserError
from lit_robust.data import EvaluationCrop, ShiftDataModule
from lit_robust.data.loading.transforms import CropError
from lit_robust.data.packing.derivation import encode
from lit_robust.reference import imagenet_subset, objectnet_classes
from lit_robust.shards.write import ShardWriter


def written(root, labels, folders=None):
    with ShardWriter(root / "sketches", "test") as writer:
        for number, label in enumerate(labels):
            image = torch.full((3, 8, 8), number, dtype=torch.uint8)
            key = f"image-{number}" if folders is None else f"{folders[number]}/image-{number}"
            writer.write(key, {"png": encode(image, "png"), "cls": b"%d" % label})
    return {"root": root, "name": "sketches", "evaluation": EvaluationCrop(None, None), "num_workers": 0}


def test_some_classes_are_those_that_a_decision_is_among(tmp_path):
    settings = written(tmp_path, [7, 3, 7])
    module = ShiftDataModule(**settings, classes=[7, 3])
    module.setup("test")
    assert module.evaluation_sets["sketches"].classes == (3, 7)
    (batch,) = module.test_dataloader()["sketches"]
    assert batch.label[batch.valid].tolist() == [7, 3, 7]
    whole = ShiftDataModule(**settings)
    whole.setup("test")
    assert whole.evaluation_sets["sketches"].classes == ()
    with pytest.raises(DataError, match=r"in class 7, not one of sketches's 200: pack the shards with"):
        ShiftDataModule(**settings, classes="imagenet-r").setup("test")


@pytest.mark.parametrize("classes", [[], [1, 1], [-1, 2], [5, 1000]])
def test_classes_that_imagenet_lacks_are_refused(tmp_path, classes):
    with pytest.raises(UserError, match="numbers: give each of some from 0 to 999 once"):
        ShiftDataModule(root=tmp_path, name="sketches", classes=classes)


def test_classes_by_name(tmp_path):
    assert ShiftDataModule(root=tmp_path, name="x", classes="imagenet-r").decided_among == imagenet_subset("imagenet-r")
    with pytest.raises(UserError, match="subset is 'imagenet-q', did you mean imagenet-"):
        ShiftDataModule(root=tmp_path, name="x", classes="imagenet-q")


def test_folders_of_several_classes_are_labelled_by_their_names(tmp_path):
    # Whatever numbers the shards were packed with; one folder shows none of ImageNet's classes.
    settings = written(tmp_path, [0, 1, 2, 0], ["chair", "coaster", "alarm_clock", "chair"])
    module = ShiftDataModule(**settings, classes="objectnet")
    module.setup("test")
    described = module.evaluation_sets["sketches"]
    assert (described.count, described.classes, described.categories) == (3, (), objectnet_classes())
    assert described.protocol["outside_the_classes"] == 1
    assert described.protocol["number_of_categories"] == 113
    (batch,) = module.test_dataloader()["sketches"]
    assert [list(objectnet_classes())[n] for n in batch.label[batch.valid]] == ["chair", "alarm_clock", "chair"]
    module.check_classes(1000)
    with pytest.raises(UserError, match="The network has 26 classes, but the folders of sketches name class"):
        module.check_classes(26)


def test_the_next_set_is_a_file(tmp_path):
    settings = written(tmp_path, [0, 0, 1], ["cup", "cup", "dog"])
    (tmp_path / "mine.json").write_text(json.dumps({"dog": [151, 152], "cup": [968]}))
    module = ShiftDataModule(**settings, classes=str(tmp_path / "mine.json"))
    module.setup("test")
    assert module.evaluation_sets["sketches"].categories == {"cup": (968,), "dog": (151, 152)}
    with pytest.raises(DataError, match="No image of .* lies in one of sketches's 113 folders, such as alarm_clock"):
        ShiftDataModule(**settings, classes="objectnet").setup("test")
    with pytest.raises(UserError, match=r"absent.json cannot be read"):
        ShiftDataModule(**settings, classes=str(tmp_path / "absent.json"))


def test_folders_list_the_right_classes(tmp_path):
    settings = written(tmp_path, [2, 0, 1, 0], ["7", "281-282", "282-999-0", "281-282"])
    module = ShiftDataModule(**settings, classes="listed")
    module.setup("test")
    described = module.evaluation_sets["sketches"]
    expected = {"281-282": (281, 282), "282-999-0": (282, 999, 0), "7": (7,)}
    assert (described.count, described.categories, described.protocol["right"]) == (4, expected, "listed")
    (batch,) = module.test_dataloader()["sketches"]
    assert [list(expected)[n] for n in batch.label[batch.valid]] == ["7", "281-282", "282-999-0", "281-282"]
    module.check_classes(1000)
    with pytest.raises(UserError, match="The network has 26 classes, but the folders of sketches name class 999"):
        module.check_classes(26)


@pytest.mark.parametrize("folder", ["cat", "1-", "5-5", "1000", "\N{SUPERSCRIPT TWO}"])
def test_a_folder_that_lists_no_classes_is_named(tmp_path, folder):
    module = ShiftDataModule(**written(tmp_path, [0], [folder]), classes="listed")
    with pytest.raises(DataError, match="whose folder lists no right classes: name the folder by ImageNet's"):
        module.setup("test")


def test_the_border_is_cut_first():
    image = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    cut = EvaluationCrop(None, None, border=2)(image)
    assert torch.equal(cut, torch.from_numpy(image[2:8, 2:10].copy()).permute(2, 0, 1))
    resized = EvaluationCrop(12, 8, border=1)(image)
    assert torch.equal(resized, EvaluationCrop(12, 8)(np.ascontiguousarray(image[1:9, 1:11])))
    assert EvaluationCrop(border=2).protocol()["border"] == 2
    assert "border" not in EvaluationCrop().protocol()
    with pytest.raises(CropError, match="12 x 10 px, all of it border"):
        EvaluationCrop(border=5)(image)
    with pytest.raises(UserError, match="border is -1"):
        EvaluationCrop(border=-1)
