import numpy as np
import pytest
import torch

from lit_robust.core.errors import UserError
from lit_robust.data.augmentations import MEAN_COLOUR, cutout
from lit_robust.data.transforms import TrainingCrop

COLOUR = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).view(3, 1, 1)


def test_the_hole_is_a_square_cut_off_at_the_border():
    pixels = torch.zeros(3, 40, 60, dtype=torch.uint8)
    sizes = set()
    for seed in range(300):
        holed = cutout(pixels, 16, np.random.default_rng(seed))
        hole = (holed == COLOUR).all(0)
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole.sum() == len(rows) * len(columns)
        assert torch.equal(holed, torch.where(hole, COLOUR, pixels))
        sizes.add((len(rows), len(columns)))
    assert (16, 16) in sizes
    assert (8, 16) in sizes, "a centre on the border leaves half of the hole"
    assert max(height for height, _ in sizes) == max(width for _, width in sizes) == 16
    assert not pixels.any(), "the image is left as it is"


def test_the_hole_is_imagenets_mean():
    mean = torch.tensor([0.485, 0.456, 0.406]) * 255
    assert torch.equal(mean.round().to(torch.uint8), COLOUR.flatten())


def test_a_training_crop_with_a_hole_is_the_crop_without_it_elsewhere():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = image.copy()
    for crop in ("none", "padded", "random_resized"):
        plain = TrainingCrop(crop, size=64)(image, np.random.default_rng(5))
        holed = TrainingCrop(crop, size=64, cutout=32)(image, np.random.default_rng(5))
        hole = (holed == COLOUR).all(0)
        assert 0.05 < hole.float().mean() <= 0.26
        assert torch.equal(holed, torch.where(hole, COLOUR, plain))
        assert torch.equal(holed, TrainingCrop(crop, size=64, cutout=32)(image, np.random.default_rng(5)))
    assert np.array_equal(image, before)


def test_a_negative_hole_is_refused():
    with pytest.raises(UserError, match="training.cutout is -1: give 0 to 10,000"):
        TrainingCrop(cutout=-1)
