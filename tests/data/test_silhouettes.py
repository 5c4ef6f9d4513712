"""Silhouettes from a folder of masks, from the toy figures, and from what a detector finds."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_corrupting import write_clean
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

from lit_robust.cli import main
from lit_robust.core.errors import DataError, UserError
from lit_robust.data import EvaluationCrop, StimulusDataModule
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.packing.derivation import Derivation
from lit_robust.data.packing.deriving import derive
from lit_robust.data.packing.silhouettes import (
    DetectedSilhouettes,
    MaskSilhouettes,
    ToySilhouettes,
    union_of_instances,
)
from lit_robust.shards import IndexedReader, ShardIndex
from lit_robust.stimuli.stimulus import Origin


def decoded(folder, split="val"):
    reader = IndexedReader(ShardIndex.open(folder, split))
    return {reader.key(n): np.array(Image.open(io.BytesIO(reader.image_bytes(n)))) for n in range(len(reader))}


@pytest.fixture
def masked(tmp_path):
    """Six images of 24 px, of which the even ones have a mask: their left third, or the whole of it cut at 16 px."""
    write_clean(tmp_path / "imagenet", 6)
    masks = tmp_path / "masks"
    for number in (0, 2, 4):
        side = 24 if number else 16
        mask = np.zeros((side, side), np.uint8)
        mask[:, : side // 2] = number + 1
        name = f"{number % 5}/{number:03d}.png" if number != 2 else "002.png"
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(masks / name)
    return tmp_path


def test_images_with_a_mask_are_made_and_others_counted(masked):
    words = ["data", "derive", "silhouettes", str(masked / "imagenet"), str(masked / "cut"), "--workers", "0"]
    assert main([*words, "--masks", str(masked / "masks"), "--resize", "null", "--crop", "16"]) == 0
    made = decoded(masked / "cut")
    assert sorted(made) == ["0/000", "2/002", "4/004"]
    assert (masked / "cut" / "cut-val-not-made.txt").read_text().split() == ["1/001", "3/003", "0/005"]
    for pixels in made.values():
        # Drawn before the crop or after it: the left half is the figure.
        assert (pixels[:, :8] == 0).all()
        assert (pixels[:, 8:] == 255).all()


def test_as_loaded_they_are_the_same(masked):
    stimulus = MaskSilhouettes(masks=masked / "masks")
    small = {"eval_batch_size": 2, "num_workers": 0}
    module = StimulusDataModule(masked, EvaluationCrop(None, 16), stimulus=stimulus, name="cut", **small)
    module.setup("test")
    batches = [batch.select(batch.valid) for batch in module.test_dataloader()["cut"]]
    images = torch.cat([batch.image for batch in batches])
    assert torch.cat([batch.label for batch in batches]).tolist() == [0, 2, 4]
    assert (images[..., :8] == 0).all()
    assert (images[..., 8:] == 255).all()
    (described,) = module.evaluation_sets.values()
    assert described.protocol["restricted"] == "3 of 6 images, the others have no mask"


def test_a_mask_of_another_size_is_refused(masked):
    Image.new("L", (20, 20), 1).save(masked / "masks" / "002.png")
    stimulus = MaskSilhouettes(masks=masked / "masks")
    with pytest.raises(DataError, match=r"002.png is 20 x 20 px, which does not become the 24 x 24 px"):
        stimulus.make(torch.zeros(1, 3, 24, 24, dtype=torch.uint8), [Origin("2/002", 2, 2)])


def test_masks_are_told_by_their_content(masked):
    first = MaskSilhouettes(masks=masked / "masks").settings
    (masked / "masks").rename(masked / "moved")
    assert MaskSilhouettes(masks=masked / "moved").settings == first
    Image.new("L", (24, 24), 1).save(masked / "moved" / "002.png")
    assert MaskSilhouettes(masks=masked / "moved").settings != first


@pytest.mark.parametrize("make", [lambda folder: folder / "none", lambda folder: folder / "imagenet"])
def test_a_folder_without_masks_is_refused(masked, make):
    with pytest.raises(UserError, match="name one with a PNG for each image"):
        MaskSilhouettes(masks=make(masked)).fits("a", 0)


def test_toy_silhouettes_are_the_figures(toy, tmp_path):
    source = open_table(toy / "imagenet", "val", Reading())
    one = Derivation(
        source=source,
        folder=tmp_path / "silhouettes",
        split="val",
        stimulus=ToySilhouettes(),
        crop=EvaluationCrop(None, None),
    )
    derive([one], workers=0)
    figures, made = decoded(toy / "imagenet"), decoded(one.folder)
    assert figures.keys() == made.keys()
    for key, figure in figures.items():
        inside = made[key][:, :, 0] == 0
        # A figure and its ground lie on two sides of 0.475; so a channel's mean tells which side the inside is on.
        grey = figure.mean(2)
        lighter = grey[inside].mean() > grey[~inside].mean()
        assert ((grey > 0.475 * 255) == (inside == lighter)).mean() > 0.9


def test_another_image_is_no_toy_figure():
    with pytest.raises(DataError, match="a/b is not a toy figure: derive from what `data toy` wrote"):
        ToySilhouettes().make(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), [Origin("a/b", 0, 0)])


def found(*instances):
    """What a detector gives: label, score and column of each instance, on 4 px."""
    masks = torch.zeros(len(instances), 1, 4, 4)
    for place, (_, _, column) in enumerate(instances):
        masks[place, 0, :, column] = 0.9
    labels, scores = [i[0] for i in instances], [i[1] for i in instances]
    return {"labels": torch.tensor(labels), "scores": torch.tensor(scores), "masks": masks}


def test_the_figure_is_all_instances_of_the_class_with_the_score():
    figure = union_of_instances(found((17, 0.9, 0), (18, 0.9, 1), (17, 0.4, 2), (17, 0.5, 3)), 17, 0.5)
    assert figure[0].tolist() == [True, False, False, True]
    assert union_of_instances(found((18, 0.9, 1)), 17, 0.5) is None
    assert union_of_instances(found(), 17, 0.5) is None


def test_a_detectors_images_without_an_instance_leave(monkeypatch, tmp_path):
    stimulus = DetectedSilhouettes(weights=tmp_path / "w.pth")
    # Tabby cats and great white sharks; COCO counts cats as 17.
    assert stimulus.numbers[281] == 17
    assert len(set(stimulus.numbers.values())) == 16
    assert stimulus.fits("a", 281)
    assert not stimulus.fits("a", 2)
    monkeypatch.setitem(stimulus.__dict__, "network", lambda images: [found((17, 0.8, 1)), found((18, 0.8, 1))])
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    made = stimulus.make(images, [Origin("a", 0, 281), Origin("b", 1, 282)])
    assert made[0][0, 0].tolist() == [255, 0, 255, 255]
    assert made[1] is None


def test_without_a_file_torchvisions_own_weights_are_asked_for(monkeypatch):
    """Nothing of them is run, and their digest is checked; here drawn ones stand in for what would be downloaded."""
    stimulus = DetectedSilhouettes()
    assert stimulus.settings["weights"] == "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    torch.manual_seed(1)
    drawn = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    asked = {}
    published = SimpleNamespace(get_state_dict=lambda **words: asked.update(words) or drawn)
    monkeypatch.setattr(DetectedSilhouettes, "_published", published)
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(stimulus.network.state_dict()[name], drawn[name])
    assert asked == {"check_hash": True, "weights_only": True}


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="of another network"):
        _ = DetectedSilhouettes(weights=tmp_path / "w.pth").network
