"""Adaptive instance normalisation: its closed forms, and the public networks' form."""

import pytest
import torch
from torch import nn

from lit_robust.stimuli.adain import ENCODED, AdaIn, decoder, renormalised, statistics, vgg


def code(seed, count=2, side=6):
    generator = torch.Generator().manual_seed(seed)
    # Deviations next to which the added 1e-5 is nothing.
    scale = torch.rand(count, 5, 1, 1, generator=generator) * 4 + 1
    return torch.randn(count, 5, side, side, generator=generator) * scale + scale


def test_statistics_are_the_mean_and_the_unbiased_deviation():
    values = code(0)
    found = statistics(values)
    for image, (means, deviations) in zip(values.double(), found.double(), strict=True):
        for channel, mean, deviation in zip(image, means, deviations, strict=True):
            own = channel.flatten()
            variance = ((own - own.mean()) ** 2).sum() / (len(own) - 1)
            assert float(mean) == pytest.approx(float(own.mean()), abs=1e-5)
            assert float(deviation) == pytest.approx(float((variance + 1e-5) ** 0.5), rel=1e-5)


def test_a_code_with_its_own_statistics_stays():
    values = code(1)
    assert torch.allclose(renormalised(values, statistics(values)), values, atol=1e-5)


def test_the_result_has_the_styles_means_and_deviations():
    style = statistics(code(2, side=9))
    found = statistics(renormalised(code(3), style))
    assert torch.allclose(found, style, atol=1e-4)


def test_a_style_of_constant_features_makes_constant_ones():
    style = statistics(torch.full((2, 5, 4, 4), 3.0))
    made = renormalised(code(4), style)
    # The deviation of a constant is that of the added 1e-5.
    assert (made - 3).abs().max() < 0.02


def test_the_networks_have_the_public_form():
    encoder, back = vgg()[:ENCODED], decoder()
    count = sum(parameter.numel() for parameter in encoder[1:].parameters())
    assert count == 3_505_728
    assert sum(parameter.numel() for parameter in back.parameters()) == 3_505_219
    assert len(vgg()) == 53
    assert isinstance(encoder[-1], nn.ReLU)
    keys = list(vgg().state_dict())
    assert keys[:4] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert keys[-1] == "51.bias"
    assert list(back.state_dict())[-1] == "28.bias"


def test_without_style_it_is_the_decoders_image_of_the_code():
    torch.manual_seed(0)
    both = AdaIn(vgg(), decoder()).eval()
    images = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        style = both.style(torch.rand(1, 3, 32, 32))
        plain = both(images, style, alpha=0)
        assert torch.allclose(plain, both.decoder(both.encoder(images)).clamp(0, 1), atol=1e-6)
        full = both(images, style, alpha=1)
        half = both(images, style, alpha=0.5)
    assert plain.shape == full.shape == images.shape
    assert not torch.equal(full, half)


def test_sides_that_eight_does_not_divide_keep_their_size():
    torch.manual_seed(0)
    both = AdaIn(vgg(), decoder()).eval()
    with torch.no_grad():
        style = both.style(torch.rand(1, 3, 32, 32))
        assert both(torch.rand(1, 3, 21, 35), style).shape == (1, 3, 21, 35)
