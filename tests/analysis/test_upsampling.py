"""Receptive fields against the arithmetic of their layers, and upsampling against torch and SciPy."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from torch import nn

from lit_robust.analysis.upsampling import Field, at_centres, bilinear, masks, passing, receptive_field
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


def same_masks(maps, expected, axis):
    """Compare masks at many limits, but for pixels that lie within rounding of one."""
    for share in (0.5, 0.8, 0.99, 0.9999):
        limits = torch.tensor(np.quantile(expected, share, axis=(1, 2)), dtype=torch.float32)
        found = masks(maps, limits, expected.shape[1:], axis)
        sure = np.abs(expected - limits[:, None, None].numpy()) > 1e-5
        assert (found.numpy() == (expected > limits[:, None, None].numpy()))[sure].all()
        assert sure.mean() > 0.8
        assert found.any() or share > 0.9


SIZES = [((7, 7), (112, 112)), ((13, 9), (50, 64)), ((1, 1), (8, 8)), ((1, 5), (3, 40)), ((20, 20), (9, 13))]


@pytest.mark.parametrize(("places", "size"), SIZES)
def test_bilinear_masks_are_torchs(places, size):
    torch.manual_seed(0)
    maps = torch.randn(3, *places)
    expected = nn.functional.interpolate(maps[None].double(), size, mode="bilinear", align_corners=False)[0]
    if places == (1, 1):
        assert masks(maps, maps[:, 0, 0] - 0.1, size, bilinear).all()
        assert not masks(maps, maps[:, 0, 0], size, bilinear).any()
    else:
        same_masks(maps, expected.numpy(), bilinear)


def test_places_that_tile_the_image_are_at_centres_of_half_a_stride():
    torch.testing.assert_close(at_centres(Field(15.5, 32), 224)(7, 112), bilinear(7, 112))


def test_upsampling_at_centres_is_the_originals():
    """NetDissect's upsampling is a spline of degree 1 through the centres (CSAILVision/NetDissect, upsample.py)."""
    torch.manual_seed(0)
    maps = torch.randn(1, 13, 13)
    centres = 15 + 16 * np.arange(13)
    pixels = (np.arange(112) + 0.5) * 2 - 0.5
    spline = RectBivariateSpline(centres, centres, maps[0].double().numpy(), kx=1, ky=1)
    same_masks(maps, spline(pixels, pixels)[None], at_centres(Field(15, 16), 224))


def test_nothing_passes_a_limit_that_no_place_passes():
    """Interpolation between equal values is exact, and pixels come once, however many are looked at together."""
    maps = torch.full((2, 6, 6), 0.1)
    maps[1, 2, 3] = 0.7
    limits = torch.tensor([0.1, 0.1])
    found = list(passing(maps, limits, (97, 97), bilinear))
    assert all((units == 1).all() and (count > 0).all() for units, _, count in found)
    pixels = torch.cat(
        [
            begin + step
            for _, first, count in found
            for begin, n in zip(first, count, strict=True)
            for step in [torch.arange(int(n))]
        ]
    )
    assert len(pixels) == len(pixels.unique()) > 97
