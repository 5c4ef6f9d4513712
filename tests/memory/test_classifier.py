"""Keys of maps in both layouts and of tokens, against means over the axes that the network's structure says."""

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer

from lit_robust.core.errors import UserError
from lit_robust.memory.classifier import CacheClassifier
from lit_robust.models import Classifier, Network, build_classifier

HALF, QUARTER = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Reshaping(nn.Module):
    """A network with a layer that gives the first channel in a given shape, for images of 8 by 8 alone or of any size.

    Args:
        shape: of two images' 128 numbers.
    """

    def __init__(self, shape: tuple[int, ...], any_size: bool) -> None:
        super().__init__()
        self.shape = shape
        self.any_size = any_size
        self.layer = nn.Identity()

    def forward(self, images):
        assert self.any_size or images.shape[2:] == (8, 8), "images of 8 by 8 alone"
        self.layer(images[:, 0].reshape(self.shape))
        return images.mean((2, 3))


def vectors_of(classifier, layer, images):
    """Return the keys' vectors, and what the layer gave out."""
    cache = CacheClassifier(classifier.eval(), layer, "none")
    with torch.no_grad():
        return cache.vectors(images), classifier.features(images, layer)


@pytest.fixture(scope="module")
def swin():
    """A Swin transformer, whose maps are channels last: 24 of them after the patches of 4 by 4."""
    torch.manual_seed(0)
    return Classifier(SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5), HALF, QUARTER)


# At 96 pixels a map is [24, 24, 24], and of images that are not square no shape tells by itself.
@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 96), (96, 64)])
@pytest.mark.parametrize(("layer", "channels"), [("features.0", 24), ("features.1", 24), ("features.3", 48)])
def test_maps_of_swin_are_channels_last(swin, size, layer, channels):
    vectors, output = vectors_of(swin, layer, torch.rand(2, 3, *size))
    assert vectors.shape == (2, channels)
    assert torch.equal(vectors, output.mean((1, 2)))


# At 64 pixels layers.1 is [32, 32, 32]; at 16 by 20 conv1 is [16, 16, 20].
@pytest.mark.parametrize("size", [(48, 48), (64, 64), (16, 20), (20, 16)])
@pytest.mark.parametrize(("layer", "channels"), [("conv1", 16), ("layers.1", 32), ("layers.3", 128), ("avgpool", 128)])
def test_maps_of_convolutions_are_channels_first(size, layer, channels):
    torch.manual_seed(0)
    model = build_classifier(Network("lit_robust/resnet_tiny", 5))
    vectors, output = vectors_of(model, layer, torch.rand(2, 3, *size))
    assert vectors.shape == (2, channels)
    assert torch.equal(vectors, output.mean((2, 3)))


def test_tokens_are_averaged():
    model = Classifier(Reshaping((2, 16, 4), any_size=False), HALF, QUARTER)
    vectors, output = vectors_of(model, "layer", torch.rand(2, 3, 8, 8))
    assert torch.equal(vectors, output.mean(1))


@pytest.mark.parametrize(
    ("shape", "any_size", "says"),
    [
        ((2, 4, 4, 4), False, "whose channels cannot be distinguished from its places: choose another"),
        ((2, 2, -1, 8), True, "whose channels cannot be distinguished from its places: choose another"),
        ((8, 4, 2, 2), False, r"gives \[8, 4, 2, 2\]: choose one of features a sample"),
        ((8, 4, 4), False, r"gives \[8, 4, 4\]: choose one of features a sample"),
        ((2, 2, 2, 4, 4), False, r"gives \[2, 2, 2, 4, 4\]: choose one of features a sample"),
    ],
)
def test_outputs_that_are_no_features(shape, any_size, says):
    model = Classifier(Reshaping(shape, any_size), HALF, QUARTER)
    with pytest.raises(UserError, match=says):
        vectors_of(model, "layer", torch.rand(2, 3, 8, 8))


def test_a_layout_is_looked_for_once():
    model = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    calls = []
    model.network.register_forward_hook(lambda *given: calls.append(len(given[2])))
    cache = CacheClassifier(model, "layers.1", "none")
    for count in (3, 4):
        cache.vectors(torch.rand(count, 3, 64, 64))
    assert calls == [3, 1, 4]
