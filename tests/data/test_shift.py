import pytest
import torch

from lit_robust.core.errors import DataError, UserError
from lit_robust.data import EvaluationCrop, ShiftDataModule
from lit_robust.data.packing.derivation import encode
from lit_robust.reference import imagenet_subset
from lit_robust.shards.write import ShardWriter


def written(root, labels):
    with ShardWriter(root / "sketches", "test") as writer:
        for number, label in enumerate(labels):
            image = torch.full((3, 8, 8), number, dtype=torch.uint8)
            writer.write(f"image-{number}", {"png": encode(image, "png"), "cls": b"%d" % label})
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
