"""Crops, resizing and augmentations of single images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from lit_robust.core.errors import UserError
from lit_robust.data.loading.transforms import MEAN_COLOUR, CropError, EvaluationCrop, TrainingCrop, cutout, random_box


def picture(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (300, 257), (256, 256), (700, 301), (100, 90)])
def test_evaluation_crop_is_torchvisions_on_pillow(size):
    image = picture(*size)
    ours = EvaluationCrop(256, 224)(image)
    peer = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    difference = (ours.int() - peer(Image.fromarray(image)).int()).abs()
    assert ours.shape == (3, 224, 224)
    assert ours.dtype == torch.uint8
    # Both interpolate in fixed point, Pillow in two rounded passes: at most one level apart.
    assert difference.max() <= 1


def test_without_resize_and_crop_nothing_changes():
    image = picture(60, 50)
    assert np.array_equal(EvaluationCrop(None, None)(image).permute(1, 2, 0).numpy(), image)


def test_centre_crop_alone_places_as_torchvision():
    image = picture(61, 52)
    peer = transforms.Compose([transforms.CenterCrop(40), transforms.PILToTensor()])
    assert torch.equal(EvaluationCrop(None, 40)(image), peer(Image.fromarray(image)))
    larger = transforms.Compose([transforms.CenterCrop(80), transforms.PILToTensor()])
    assert torch.equal(EvaluationCrop(None, 80)(image), larger(Image.fromarray(image)))


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
def test_training_crop_follows_from_its_generator(crop):
    image = picture(64, 64)
    training = TrainingCrop(crop, size=64)

    def draw(seed):
        return training(image, np.random.default_rng(seed))

    assert draw(1).shape == (3, 64, 64)
    assert torch.equal(draw(1), draw(1))
    assert len({draw(seed).numpy().tobytes() for seed in range(20)}) > 15


def test_random_boxes_have_the_stated_areas_and_aspects():
    random = np.random.default_rng(0)
    boxes = [random_box(400, 500, random) for _ in range(2000)]
    areas = np.array([height * width / 200_000 for _, _, height, width in boxes])
    aspects = np.array([width / height for _, _, height, width in boxes])
    assert all(top + height <= 400 and left + width <= 500 for top, left, height, width in boxes)
    assert areas.min() > 0.079
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35
    # Uniform areas, but for the largest, which do not fit and are drawn again: the mean lies a little below 0.54.
    assert 0.45 < areas.mean() < 0.56


def test_flips_half_of_the_images():
    image = picture(32, 32)
    training = TrainingCrop("none", size=32)
    flipped = [
        torch.equal(training(image, np.random.default_rng(seed)).flip(2), EvaluationCrop(None, None)(image))
        for seed in range(400)
    ]
    # Binomial(400, 1/2): four standard deviations are 40.
    assert 160 < sum(flipped) < 240


@pytest.mark.parametrize(("height", "width"), [(63, 64), (40, 200), (64, 65), (1, 1)])
def test_images_of_another_size_are_refused_without_a_crop(height, width):
    with pytest.raises(CropError, match=f"is {width} x {height} px, but without a crop .* must be 64 x 64 px: set"):
        TrainingCrop("none", size=64)(picture(height, width), np.random.default_rng(0))


def test_a_padded_crop_takes_images_down_to_three_quarters_of_its_size():
    # 8 px of padding on each side of 48 px are 64.
    assert TrainingCrop("padded", size=64)(picture(48, 48), np.random.default_rng(0)).shape == (3, 64, 64)
    with pytest.raises(CropError, match="is 48 x 47 px, too small for a crop of 64 px after 8 px of padding: set"):
        TrainingCrop("padded", size=64)(picture(47, 48), np.random.default_rng(0))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_a_random_resized_crop_takes_images_of_any_size(height, width):
    for seed in range(20):
        cut = TrainingCrop("random_resized", size=16)(picture(height, width), np.random.default_rng(seed))
        assert cut.shape == (3, 16, 16)


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
