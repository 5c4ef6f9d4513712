"""What all corruptions promise: seeds, batches, sizes, errors; and that the random numbers are the right ones."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from lit_robust.core.errors import UserError
from lit_robust.stimuli.corruptions import (
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
    FrostPictures,
    corrupt,
)
from lit_robust.stimuli.corruptions.registry import _function
from lit_robust.stimuli.corruptions.shared import Draws

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"} | {
    "elastic_transform",
    "speckle_noise",
    "spatter",
}
# Those whose parameters all grow, and that blur, add or take away without chance of shifting the image back.
GROWING = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "gaussian_blur"]
GROWING += ["zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"]
CPU = torch.device("cpu")


def scene(count, height, width, seed=0):
    """Smooth colours, edges and some grain, ``[count, 3, height, width]``: every corruption changes it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    images = []
    for _ in range(count):
        phase, rate = rng.uniform(0, 6, (3, 1, 1)), rng.uniform(5, 25, (3, 1, 1))
        waves = 120 + 70 * np.sin(phase + rate * rows + 12 * columns) + 40 * (columns > rng.uniform(0.2, 0.8))
        images.append((waves + rng.normal(0, 6, waves.shape)).clip(0, 255))
    return torch.from_numpy(np.stack(images).astype(np.uint8))


def plain(value, side=128):
    return torch.full((1, 3, side, side), value, dtype=torch.uint8)


def mean_squared_error(one, other):
    return float(((one.float() - other.float()) ** 2).mean())


def test_names():
    assert len(CORRUPTIONS) == 15
    assert len(EXTRA_CORRUPTIONS) == 4
    assert ALL_CORRUPTIONS == CORRUPTIONS + EXTRA_CORRUPTIONS
    assert SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_batch_seed_and_type(name):
    images = scene(3, 48, 48)
    before = images.clone()
    out = corrupt(images, name, 3, seeds=[5, 6, 7])
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    assert torch.equal(images, before), "the input is left as it is"
    assert not torch.equal(out, images)
    alone = torch.cat([corrupt(images[k : k + 1], name, 3, seeds=[5 + k]) for k in range(3)])
    turned = corrupt(images.flip(0), name, 3, seeds=[7, 6, 5]).flip(0)
    assert torch.equal(out, alone)
    assert torch.equal(out, turned)
    differs = not torch.equal(out, corrupt(images, name, 3, seeds=[50, 60, 70]))
    assert differs == (name in RANDOM)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_whole_batch_as_on_an_accelerator(name):
    """There the batch is not taken apart; the same code must then give the same images, to the bit."""
    images = scene(4, 60, 50)
    function = _function(name, None)
    for severity in (1, 5):
        together = function(images, severity, Draws([1, 2, 3, 4], CPU))
        alone = [function(images[k : k + 1], severity, Draws([k + 1], CPU)) for k in range(4)]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (65, 33), (250, 100)])
@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_any_size(name, size):
    for severity in (1, 5):
        image = scene(1, *size)
        out = corrupt(image, name, severity, seeds=[2**63])
        assert out.shape == image.shape
        assert out.float().std() > 0


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_even_images_have_no_artefacts_of_division(name, value):
    for severity in SEVERITIES:
        corrupt(plain(value, 32), name, severity, seeds=[0])
    if name in {"defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"} | {
        "elastic_transform"
    }:
        # Any mean of equal values is that value; only defocus_blur's kernel does not sum to 1, at severities 4 and 5.
        assert torch.equal(corrupt(plain(value, 32), name, 3, seeds=[0]), plain(value, 32))


@pytest.mark.parametrize("name", GROWING)
def test_error_grows_with_severity(name):
    images = scene(8, 96, 96)
    errors = [mean_squared_error(corrupt(images, name, s, range(8)), images) for s in SEVERITIES]
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize("name", ["gaussian_blur", "elastic_transform", "glass_blur"])
def test_mixed_precision_outside_changes_nothing(name):
    images = scene(1, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = corrupt(images, name, 3, [0])
    assert torch.equal(inside, corrupt(images, name, 3, [0]))


def test_other_noise_for_another_corruption_and_severity():
    image = plain(128)
    one = corrupt(image, "gaussian_noise", 1, [0]).float() - 128
    for other in (corrupt(image, "gaussian_noise", 2, [0]), corrupt(image, "speckle_noise", 1, [0])):
        correlation = np.corrcoef(one.flatten(), other.float().flatten())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(image.numel())


def test_draws_are_distributed_as_they_say():
    draws = Draws([3], CPU)
    # Kolmogorov-Smirnov on 40,000 numbers from a fixed seed: 0.001 would fail once in a thousand other seeds.
    normal, uniform = draws.normal((200, 200), 2.0, 3.0), draws.uniform((200, 200), -1.0, 3.0)
    assert stats.kstest(normal.flatten().double().numpy(), stats.norm(2, 3).cdf).pvalue > 1e-3
    assert stats.kstest(uniform.flatten().double().numpy(), stats.uniform(-1, 4).cdf).pvalue > 1e-3
    counts = torch.bincount(draws.integers((200, 200), 16).flatten(), minlength=16)
    assert len(counts) == 16
    assert stats.chisquare(counts).pvalue > 1e-3


def expected_after_truncation(values, weights):
    """Mean and variance of ``floor(clip(v))`` over a fine distribution of ``v`` in grey levels."""
    levels = np.floor(values.clip(0, 255))
    mean = (weights * levels).sum()
    return mean, (weights * levels**2).sum() - mean**2


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("value", [0, 30, 128, 255])
def test_noise_has_the_published_mean_and_variance(severity, value):
    """Against the exact distribution; 4.5 standard errors of the 16 x 3 x 128 x 128 values' mean and variance."""
    images = plain(value).expand(16, -1, -1, -1)
    steps = np.linspace(-8, 8, 400_001)
    density = np.exp(-(steps**2) / 2)
    density /= density.sum()
    photons = (60, 25, 12, 5, 3)[severity - 1]
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    counts = np.arange(200)
    distributions = {
        "gaussian_noise": (value + 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1] * steps, density),
        "speckle_noise": (value * (1 + (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1] * steps) + 1e-9, density),
        "shot_noise": (counts / photons * 255 + 1e-9, stats.poisson.pmf(counts, value / 255 * photons)),
        "impulse_noise": (np.array([0, value, 255]), np.array([share / 2, 1 - share, share / 2])),
    }
    for name, (values, weights) in distributions.items():
        out = corrupt(images, name, severity, range(16)).double()
        mean, variance = expected_after_truncation(values, weights)
        levels = np.floor(values.clip(0, 255))
        fourth = (weights * (levels - mean) ** 4).sum()
        count = out.numel()
        # The table of shot noise has 65,536 quantiles, so a mean may be off by a part in that.
        slack = 255 / 2**16
        assert abs(out.mean() - mean) <= 4.5 * math.sqrt(variance / count) + slack, name
        assert abs(out.var() - variance) <= 4.5 * math.sqrt(max(fourth - variance**2, 0) / count) + 255 * slack, name


def test_frost_from_a_folder(tmp_path):
    for number in range(1, 6):
        Image.new("RGB", (300, 230), (40 * number,) * 3).save(
            tmp_path / f"frost{number}.{'png' if number < 4 else 'jpg'}"
        )
    pictures = FrostPictures(tmp_path)
    assert len(pickle.dumps(pictures)) < 1000, "workers get the folder, not the pixels"
    assert pickle.loads(pickle.dumps(pictures)) == pictures
    seen = {int(corrupt(plain(0, 32), "frost", 2, [seed], frost=pictures).float().mean().round()) for seed in range(60)}
    assert seen == {24, 48, 72, 96, 120}, "all five, at 0.6 of their brightness"


def test_frost_pictures_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"frost1\.png or \.jpg"):
        FrostPictures(tmp_path)
    (tmp_path / "frost1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="Cannot read"):
        FrostPictures(tmp_path)
    Image.new("RGB", (300, 224)).save(tmp_path / "frost1.png")
    with pytest.raises(UserError, match="300 x 224"):
        FrostPictures(tmp_path)


def test_drawn_frost_is_as_bright_as_the_photographs():
    for picture, colour in zip(
        FrostPictures().pictures,
        [(78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135)],
        strict=True,
    ):
        # Clipping at white moves the mean by a few levels.
        np.testing.assert_allclose(picture.float().mean(dim=(1, 2)), colour, atol=5)
        assert 12 < picture.float().std(dim=(1, 2)).min() < 50


@pytest.mark.parametrize(
    ("images", "name", "severity", "seeds", "words"),
    [
        (plain(0), "rain", 1, [0], "'rain'.*gaussian_noise"),
        (plain(0), "fog", 0, [0], "Severity 0"),
        (plain(0), "fog", 6, [0], "Severity 6"),
        (plain(0).float(), "fog", 1, [0], "torch.float32"),
        (plain(0)[0], "fog", 1, [0], "uint8 of"),
        (plain(0, 15), "fog", 1, [0], "at least 16"),
        (plain(0), "fog", 1, [0, 1], "2 seeds for 1 images"),
        (plain(0), "fog", 1, [-1], "none negative"),
    ],
)
def test_mistakes(images, name, severity, seeds, words):
    with pytest.raises(UserError, match=words):
        corrupt(images, name, severity, seeds)


def test_nothing_in_nothing_out():
    assert corrupt(torch.empty(0, 3, 32, 32, dtype=torch.uint8), "fog", 1, []).shape == (0, 3, 32, 32)
