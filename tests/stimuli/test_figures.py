"""The toy figures: their bytes, their outlines' areas, their textures' strength, and what their cues say."""

import dataclasses
import hashlib

import numpy as np
import pytest

from lit_robust.core.errors import UserError
from lit_robust.stimuli import figures, outlines, textures
from lit_robust.stimuli.figures import CLASS_NAMES, HARD, OUTLINES, PLAIN, TEXTURES, draw_figure, draw_figures

# No texture, so that figure and ground have one colour each.
BARE = dataclasses.replace(PLAIN, amplitude=0.0)


def seed(*numbers):
    return np.random.SeedSequence(list(numbers))


def share_of_figure(image):
    """Return each pixel's share of the figure, of an image without texture whose corners are ground."""
    pixels = image.astype(float)
    ground = pixels[0, 0]
    distance = np.abs(pixels - ground).sum(axis=2)
    return distance / distance.max()


def test_same_arguments_give_the_same_bytes():
    again = [draw_figure(outline=3, texture=5, size=48, seed=seed(7)) for _ in range(2)]
    assert again[0].tobytes() == again[1].tobytes()
    assert again[0].tobytes() != draw_figure(outline=3, texture=5, size=48, seed=seed(8)).tobytes()


def test_bytes_are_the_same_on_every_machine():
    cues = [(n, n) for n in range(len(OUTLINES))]
    sheet = np.concatenate([draw_figures(cues, size=32, seed=5), draw_figures(cues, size=32, seed=5, layout=HARD)])
    digest = hashlib.sha256(sheet.tobytes()).hexdigest()
    assert digest == "b845c3945fb38126a229798a60e85a816186f541f0be5b5f57b6be420d1d69a9"


def test_a_figure_depends_on_its_number_and_cues_alone():
    cues = figures.conflicting_cues(6)
    whole = draw_figures(cues, size=32, seed=3)
    assert np.array_equal(draw_figures(cues[:4], size=32, seed=3), whole[:4])
    assert np.array_equal(draw_figure(outline=cues[4][0], texture=cues[4][1], size=32, seed=seed(3, 4)), whole[4])
    assert whole.shape == (6, 32, 32, 3)
    assert whole.dtype == np.uint8


def test_raw_words_become_the_numbers_generators_draw():
    draws, random = figures.FigureDraws(seed(1)), np.random.default_rng(seed(1))
    assert [draws.uniform(2.0, 5.0) for _ in range(100)] == [2.0 + 3.0 * random.random() for _ in range(100)]


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_have_like_areas_and_stay_near_the_origin(name):
    axis = np.linspace(-1.5, 1.5, 601, dtype=np.float32)
    mask = outlines.inside(name, axis[None, :], axis[:, None])
    area = mask.mean() * 3.0**2
    x, y = np.broadcast_to(axis[None, :], mask.shape)[mask], np.broadcast_to(axis[:, None], mask.shape)[mask]
    assert 1.6 < area < 2.4
    assert np.hypot(x, y).max() < 1.4
    assert np.hypot(x.mean(), y.mean()) < 0.2


def test_areas_agree_with_closed_forms():
    # 1,201 points across 3 units: the border of a unit figure is met to about its length times half a step, 0.01.
    axis = np.linspace(-1.5, 1.5, 1201, dtype=np.float32)
    star = np.array(outlines._STAR)
    shoelace = abs(np.sum(star[:, 0] * np.roll(star[:, 1], -1) - star[:, 1] * np.roll(star[:, 0], -1))) / 2
    expected = {
        "disc": np.pi * 0.81**2,
        "square": 1.44**2,
        "ring": np.pi * (1 - 0.36),
        "cross": 4 * 0.6 - 0.36,
        "star": shoelace,
    }
    for name, area in expected.items():
        assert outlines.inside(name, axis[None, :], axis[:, None]).mean() * 3.0025**2 == pytest.approx(area, abs=0.03)


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_half_bright_and_fine(name):
    axis = np.arange(0, 60, 0.03, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    mask = textures.bright(name, u, v)
    assert 0.45 < mask.mean() < 0.55
    # Averaged over 3 x 3 periods little is left of it: it is a local pattern.
    blocks = mask[:2000, :2000].reshape(20, 100, 20, 100).mean(axis=(1, 3))
    assert blocks.std() < 0.12


@pytest.mark.parametrize("name", sorted(set(TEXTURES) - {"grain"}))
def test_textures_look_the_same_in_a_mirror(name):
    axis = np.arange(-6, 6, 0.05, dtype=np.float32) + np.float32(0.025)
    u, v = np.meshgrid(axis, axis)
    patch = textures.bright(name, u, v)[:, 40:200].astype(float)
    # Some shift of the mirrored pattern along u brings it back.
    shifts = np.arange(0, 6, 0.05, dtype=np.float32)
    mirrored = (textures.bright(name, -(u + shift), v)[:, 40:200] for shift in shifts)
    assert max(np.mean(patch == other) for other in mirrored) > 0.9


@pytest.mark.parametrize("outline", range(len(OUTLINES)))
def test_outline_does_not_depend_on_the_texture(outline):
    bare = [draw_figure(outline=outline, texture=t, size=48, seed=seed(4), layout=BARE) for t in (0, 3, 11)]
    assert np.array_equal(bare[0], bare[1])
    assert np.array_equal(bare[0], bare[2])
    textured = draw_figure(outline=outline, texture=3, size=48, seed=seed(4)).astype(int)
    changed = np.abs(textured - bare[0]).max(axis=2) > 0
    assert not changed[share_of_figure(bare[0]) == 0].any()


def test_the_figures_area_is_the_outlines():
    for number in range(8):
        image = draw_figure(outline=0, texture=0, size=64, seed=seed(number), layout=BARE)
        radius = np.sqrt(share_of_figure(image).sum() / np.pi) / 64 / 0.81
        # Rounding to 256 levels and counting nine points a pixel move the area by well under 2 %.
        assert PLAIN.radius[0] * 0.99 < radius < PLAIN.radius[1] * 1.01


@pytest.mark.parametrize("texture", range(len(TEXTURES)))
def test_texture_amplitude_is_bounded_and_reached(texture):
    for number in range(4):
        bare = draw_figure(outline=1, texture=texture, size=96, seed=seed(number), layout=BARE).astype(int)
        rich = draw_figure(outline=1, texture=texture, size=96, seed=seed(number)).astype(int)
        difference = (rich - bare) / 255
        # Two roundings to 1/255 add at most one level.
        assert np.abs(difference).max() <= PLAIN.amplitude + 1 / 255
        assert difference.max() > 0.8 * PLAIN.amplitude
        assert difference.min() < -0.8 * PLAIN.amplitude
        # The mean over the figure, a few periods wide, tells little of the texture.
        inside = share_of_figure(bare) == 1
        assert abs(difference[inside].mean()) < 0.4 * PLAIN.amplitude


def test_no_colour_is_clipped():
    images = draw_figures(figures.conflicting_cues(112), size=32, seed=1)
    reach = (figures.DARK[0] - PLAIN.amplitude, figures.LIGHT[1] + PLAIN.amplitude)
    assert images.min() >= np.floor(255 * reach[0])
    assert images.max() <= np.ceil(255 * reach[1])


def test_figures_are_light_on_dark_as_often_as_dark_on_light():
    images = [draw_figure(outline=1, texture=0, size=16, seed=seed(n), layout=BARE).astype(float) for n in range(400)]
    lighter = sum(image[8, 8].sum() > image[0, 0].sum() for image in images)
    # 400 fair coins: five standard deviations are 50.
    assert abs(lighter - 200) < 50


def test_flat_figures_have_the_two_colours_of_the_draw():
    for number in range(50):
        image = draw_figure(outline=1, texture=0, size=32, seed=seed(number), layout=BARE) / 255
        pair = sorted([image[16, 16], image[0, 0]], key=sum)
        slack = 0.5 / 255 + 1e-6
        assert all(figures.DARK[0] - slack <= c <= figures.DARK[1] + slack for c in pair[0])
        assert all(figures.LIGHT[0] - slack <= c <= figures.LIGHT[1] + slack for c in pair[1])


def test_hard_figures_are_cluttered_and_often_cut():
    plain = draw_figures(figures.agreeing_cues(64), size=48, seed=2)
    hard = draw_figures(figures.agreeing_cues(64), size=48, seed=2, layout=HARD)

    def busy_borders(images):
        border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1).astype(int)
        return np.mean(np.ptp(border, axis=1).max(axis=1) > 8)

    assert busy_borders(plain) < 0.1
    assert busy_borders(hard) > 0.9


def test_agreeing_cues_name_every_class_equally_often():
    cues = figures.agreeing_cues(80)
    assert all(outline == texture for outline, texture in cues)
    assert np.bincount([outline for outline, _ in cues]).tolist() == [10] * 8


def test_conflicting_cues_disagree_and_are_balanced():
    cues = figures.conflicting_cues(112)
    assert all(outline != texture for outline, texture in cues)
    assert len(set(cues)) == 56
    assert np.bincount([outline for outline, _ in cues]).tolist() == [14] * 8
    assert np.bincount([texture for _, texture in cues]).tolist() == [14] * 8


def test_stylized_cues_pair_every_outline_with_every_texture():
    cues = figures.stylized_cues(96)
    assert set(cues) == {(outline, texture) for outline in range(8) for texture in range(12)}


def test_novel_cues_are_of_no_class():
    cues = figures.novel_cues(32)
    assert set(cues) == {(outline, texture) for outline in range(8, 12) for texture in range(8, 12)}
    assert len(CLASS_NAMES) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"outline": 12, "texture": 0, "size": 48}, "outline 12"),
        ({"outline": 0, "texture": -1, "size": 48}, "texture -1"),
        ({"outline": 0, "texture": 0, "size": 8}, "8 px"),
    ],
)
def test_mistakes_name_the_value(arguments, words):
    with pytest.raises(UserError, match=words):
        draw_figure(**arguments, seed=seed(0))


def test_sets_refuse_a_negative_seed():
    with pytest.raises(UserError, match="Seed -1"):
        draw_figures([(0, 0)], size=48, seed=-1)


@pytest.mark.parametrize("change", [{"amplitude": 0.3}, {"radius": (0.0, 0.3)}, {"period": (-0.1, 0.1)}])
def test_layouts_that_cannot_be_drawn_are_refused(change):
    with pytest.raises(UserError):
        dataclasses.replace(PLAIN, **change)
