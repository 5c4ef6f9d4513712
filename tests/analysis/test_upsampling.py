"""Receptive fields against the arithmetic of their layers, and upsampling against torch and SciPy."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from torch import nn

from lit_robust.analysis.upsampling import Field, at_centres, bilinear, receptive_field
from lit_robust.core.errors import UserError
from lit_robust.models import Classifier, Network, build_classifier


def composed(*layers):
    """Return offset and stride of a chain of layers, each (kernel, stride, padding)."""
    offset, stride = 0.0, 1.0
    for kernel, step, padding in layers:
        offset += stride * ((kernel - 1) / 2 - padding)
        stride *= step
    return Field(offset, stride)


CONV1, POOL, CONV2, CONV = (11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 1, 1)


@pytest.mark.parametrize(
    ("layer", "chain"),
    [
        ("features.1", [CONV1]),
        ("features.4", [CONV1, POOL, CONV2]),
        ("features.11", [CONV1, POOL, CONV2, POOL, CONV, CONV, CONV]),
    ],
)
def test_fields_of_alexnet(layer, chain):
    classifier = build_classifier(Network("torchvision/alexnet", 5)).eval()
    assert receptive_field(classifier, layer, side=768) == composed(*chain)


def test_fields_of_a_residual_network():
    classifier = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    # The widest path of a block counts: two 3x3 convolutions, the first of stride 2.
    chain = [(3, 1, 1)] * 3 + [(3, 2, 1), (3, 1, 1)]
    assert receptive_field(classifier, "layers.1", side=192, width=48) == composed(*chain)


def test_a_place_that_sees_the_whole_image():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.Flatten(), nn.Identity())
    classifier = Classifier(network.eval(), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(UserError, match="'1' sees the whole image: set upsampling to bilinear"):
        receptive_field(classifier, "1", side=64, width=16)


def test_bilinear_over_the_whole_image_is_torchs_field():
    """Places that tile the image are at centres of half a stride."""
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 7, 7)
    tiled = at_centres(Field(15.5, 32), 224)(maps, (112, 112))
    torch.testing.assert_close(tiled, bilinear(maps, (112, 112)), atol=1e-5, rtol=1e-5)


def test_upsampling_at_centres_is_the_originals():
    """NetDissect's upsampling is a spline of degree 1 through the centres (CSAILVision/NetDissect, upsample.py)."""
    torch.manual_seed(0)
    maps = torch.randn(1, 1, 13, 13)
    centres = 15 + 16 * np.arange(13)
    pixels = (np.arange(112) + 0.5) * 2 - 0.5
    spline = RectBivariateSpline(centres, centres, maps[0, 0].double().numpy(), kx=1, ky=1)
    expected = spline(pixels, pixels)
    found = at_centres(Field(15, 16), 224)(maps, (112, 112))[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
