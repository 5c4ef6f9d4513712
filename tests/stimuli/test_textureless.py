"""Black-and-white images, edges and silhouettes."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.feature import canny
from skimage.filters import threshold_otsu

from lit_robust.core.errors import UserError
from lit_robust.stimuli import textureless
from lit_robust.stimuli.stimulus import Origin
from lit_robust.stimuli.textureless import (
    BlackAndWhite,
    Edges,
    black_and_white,
    edges,
    otsu_threshold,
    silhouette,
    traced,
)

ORIGIN = [Origin("a", 0, 0)]


def disc(side=64, centre=32, radius=20):
    """A dark disc on bright ground, ``[3, side, side]``, and where the disc is."""
    y, x = np.mgrid[:side, :side]
    inside = torch.from_numpy((x - centre) ** 2 + (y - centre) ** 2 <= radius**2)
    image = torch.where(inside, torch.tensor([[[200]], [[30]], [[40]]]), torch.tensor([[[130]], [[250]], [[220]]]))
    return image.to(torch.uint8), inside


def test_white_is_what_is_brighter_than_half_of_the_brightest():
    """``R + G + B > 382.5``: potrace's rule, on each side of it."""
    pixels = torch.tensor([[127, 128, 127], [128, 128, 127], [255, 127, 0], [255, 128, 0]], dtype=torch.uint8)
    made = black_and_white(pixels.T[None, :, None])[0, :, 0]
    assert made.tolist() == [[0, 255, 0, 255]] * 3


def test_each_rule_makes_a_set_of_its_own_name():
    names = [BlackAndWhite(rule=rule).described["stimulus"] for rule in textureless.RULES]
    assert names == ["black-and-white", "black-and-white-otsu", "black-and-white-potrace"]
    assert len({BlackAndWhite(rule=rule).described["stimulus_sha256"] for rule in textureless.RULES}) == 3


def test_otsu_is_scikit_images():
    random = np.random.default_rng(0)
    grey = np.clip(random.normal(70, 20, (8, 48, 48)), 0, 255)
    grey[:, 24:] = np.clip(random.normal(180, 25, (8, 24, 48)), 0, 255)
    images = torch.from_numpy(grey.astype(np.uint8))[:, None].expand(-1, 3, -1, -1)
    own = black_and_white(images, otsu_threshold(images))
    for image, made in zip(images, own, strict=True):
        # Theirs is the highest value of the lower group.
        expected = image[0].numpy() > threshold_otsu(image[0].numpy(), nbins=256)
        assert np.array_equal(made[0].numpy() > 0, expected)


def test_an_image_of_one_colour_has_a_threshold():
    flat = torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)
    assert float(otsu_threshold(flat)) == pytest.approx(90 / 255)
    assert black_and_white(flat, otsu_threshold(flat)).unique().tolist() == [0]


@pytest.mark.skipif(
    not (shutil.which("potrace") and shutil.which("rsvg-convert")), reason="needs Debian's potrace and librsvg2-bin"
)
def test_what_potrace_draws_is_what_the_threshold_says():
    image, inside = disc()
    made = traced(image)
    assert made.shape == image.shape
    agree = ((made[0] > 127) == ~inside).float().mean()
    assert agree > 0.98
    # The trap: a transparent ground that is read as black.
    assert 0.2 < (made[0] == 0).float().mean() < 0.4
    speck = image.clone()
    speck[:, 2, 2] = 0
    assert black_and_white(speck[None])[0, 0, 2, 2] == 0
    assert traced(speck)[0, 2, 2] == 255


def test_a_program_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(textureless.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="The program potrace is not installed, which the rule potrace needs"):
        BlackAndWhite(rule="potrace").make(disc()[0][None], ORIGIN)


def test_edges_are_scikit_images_and_black():
    image, inside = disc()
    made = edges(image)
    grey = np.asarray(image.permute(1, 2, 0) / 255, dtype=np.float64) @ [0.2125, 0.7154, 0.0721]
    assert np.array_equal(made[0].numpy() == 0, canny(grey, 0.4, 0.35, 0.9))
    assert set(made.unique().tolist()) == {0, 255}
    ring = inside & ~torch.from_numpy(np.array(Image.fromarray(inside.numpy()).resize((64, 64)))).logical_not()
    assert (made[0] == 0).sum() > 60
    assert not ((made[0] == 0) & ~ring).sum() > 100
    assert torch.equal(Edges().make(image[None], ORIGIN)[0], made)


def test_silhouettes_are_black_on_white():
    _, inside = disc()
    made = silhouette(inside)
    assert made.shape == (3, 64, 64)
    assert torch.equal(made[1] == 0, inside)
    assert set(made.unique().tolist()) == {0, 255}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: BlackAndWhite(rule="grey"), "rule is 'grey': choose one of threshold, otsu, potrace"),
        (lambda: Edges(sigma=0), "give a positive sigma, and low not above high"),
        (lambda: Edges(low=1, high=0.5), "give a positive sigma, and low not above high"),
    ],
)
def test_what_makes_no_sense_is_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
