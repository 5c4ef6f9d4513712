"""Texture by optimisation: the losses against loops in float64, and what their minima are."""

import numpy as np
import pytest
import torch
from torch import nn

from lit_robust.core.errors import UserError
from lit_robust.stimuli.gatys import Gatys, content_loss, gram, style_loss


def network(seed=0):
    torch.manual_seed(seed)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def features(images):
        low = first(images).relu()
        return {"low": low, "high": second(low).relu()}

    for layer in (first, second):
        layer.requires_grad_(False)
    return features


def images(count, seed=0, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


SETTINGS = {"style_layers": ["low", "high"], "content_layer": "high"}


def test_losses_are_the_papers_sums():
    """Gatys et al. 2016, equations 1, 3 and 4, written out."""
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 3, 4, 5))
    channels, places = 3, 20
    expected, content = 0.0, 0.0
    for i in range(channels):
        for j in range(channels):
            grams = [sum(f[i].flat[k] * f[j].flat[k] for k in range(places)) for f in (one, other)]
            expected += (grams[0] - grams[1]) ** 2
    expected /= 4 * channels**2 * places**2
    content = 0.5 * ((one - other) ** 2).sum()
    tensors = torch.from_numpy(one)[None], torch.from_numpy(other)[None]
    assert float(style_loss(tensors[0], gram(tensors[1]) / places)) == pytest.approx(expected)
    assert float(content_loss(*tensors)) == pytest.approx(content)


def test_a_texture_says_nothing_of_places():
    features = images(1, side=8)
    moved = features.flatten(2)[:, :, torch.randperm(64)].reshape(features.shape)
    assert torch.allclose(gram(features), gram(moved), atol=1e-5)
    assert float(style_loss(features, gram(moved) / 64)) < 1e-10


def test_the_image_of_its_own_texture_stays():
    content = images(1)
    made, losses = Gatys(**SETTINGS, steps=5).transfer(network(), content, content, [0])
    assert torch.equal(made, content)
    assert losses.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("optimiser", ["adam", "lbfgs"])
def test_texture_comes_nearer_and_the_content_stays_near(optimiser):
    content, texture = images(2), images(2, seed=1) * torch.tensor([1.0, 0.2, 0.6])[:, None, None]
    settings = Gatys(**SETTINGS, steps=40, optimiser=optimiser)
    made, losses = settings.transfer(network(), content, texture, [0, 1])
    assert made.min() >= 0
    assert made.max() <= 1
    assert (losses[0] < 0.3).all()  # 1 is the content image's own.
    assert (losses[1] < 1).all()  # 1 is a grey image's.
    found = network()(made)
    wanted = network()(texture)
    for name in ("low", "high"):
        before = style_loss(network()(content)[name], gram(wanted[name]) / wanted[name][0, 0].numel())
        after = style_loss(found[name], gram(wanted[name]) / wanted[name][0, 0].numel())
        assert (after < before).all()


def test_from_noise_without_style_comes_the_content():
    settings = Gatys(style_layers=["low"], content_layer="low", content_weight=1e6, steps=300, start="noise")
    content = images(1)
    made, losses = settings.transfer(network(), content, content, [3])
    assert float(losses[1]) < 0.1  # Noise itself has more than 1.
    other, _ = settings.transfer(network(), content, content, [4])
    assert not torch.equal(made, other)


@pytest.mark.parametrize("optimiser", ["adam", "lbfgs"])
def test_an_image_does_not_depend_on_its_batch(optimiser):
    content, texture = images(3), images(3, seed=1)
    settings = Gatys(**SETTINGS, steps=10, optimiser=optimiser, start="noise")
    together, _ = settings.transfer(network(), content, texture, [5, 6, 7])
    alone, _ = settings.transfer(network(), content[2:], texture[2:], [7])
    assert torch.allclose(together[2], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"style_layers": []}, "style_layers is empty"),
        ({"optimiser": "sgd"}, "optimiser is 'sgd': choose one of adam, lbfgs"),
        ({"start": "grey"}, "start is 'grey': choose one of content, noise"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Gatys(**{**SETTINGS, **settings})
