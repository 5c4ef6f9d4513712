"""Representations: their values are the network's own, and the gradient passes the last ReLU alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_robust.analysis.representation import Representation
from lit_robust.core.errors import UserError
from lit_robust.models import Classifier, Network, build_classifier

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Ended(nn.Module):
    """A convolution, something that the representation ends in, pooling, and a linear layer."""

    def __init__(self, end):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.end = end
        self.fc = nn.Linear(16, 4)

    def forward(self, images):
        return self.fc(self.end(self.conv(images)).mean((2, 3)))


class Branched(nn.Module):
    """Two rectified branches side by side, behind one rectified layer, as in SqueezeNet and Inception."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(16, 4)

    def forward(self, images):
        hidden = self.relu(self.first(images))
        return self.fc(torch.cat([self.relu(self.left(hidden)), F.relu(self.right(hidden))], 1).mean((2, 3)))


def classifier(network):
    torch.manual_seed(0)
    network.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
    return Classifier(network.eval(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def gradient(represent, weights):
    images = IMAGE.clone().requires_grad_(True)
    (represent(images) * weights).sum().backward()
    return images.grad


@pytest.mark.parametrize("end", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), F.relu, F.relu6, torch.relu])
def test_the_gradient_passes_the_last_rectifier_and_values_stay(end):
    network = classifier(Ended(end if isinstance(end, nn.Module) else Called(end)))
    represent = Representation.of(network, IMAGE)
    bare = classifier(Ended(nn.Identity()))
    bare.load_state_dict(network.state_dict())
    weights = torch.arange(1.0, 17.0)
    assert represent.protocol()["straight_through"] == [
        "relu6" if "6" in getattr(end, "__name__", str(type(end))) else "relu"
    ]
    torch.testing.assert_close(represent(IMAGE), Representation(network)(IMAGE), rtol=0, atol=0)
    torch.testing.assert_close(gradient(represent, weights), gradient(Representation(bare), weights))
    assert not torch.allclose(gradient(Representation(network), weights), gradient(represent, weights))


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def test_only_the_last_of_several_is_straight_and_all_that_stand_side_by_side():
    network = classifier(Branched())
    represent = Representation.of(network, IMAGE)
    assert represent.straight == (frozenset({1, 2}), ("relu",))
    inner = network.network

    def expected(images):  # the first ReLU as it is, the two last ones the identity
        hidden = F.relu(inner.first((images - 0.5) / 0.5))
        return torch.cat([inner.left(hidden), inner.right(hidden)], 1).mean((2, 3))

    weights = torch.arange(1.0, 17.0)
    torch.testing.assert_close(gradient(represent, weights), gradient(expected, weights))


def test_a_representation_that_ends_in_a_norm_is_left_alone():
    network = classifier(Ended(nn.LayerNorm(6)))
    represent = Representation.of(network, IMAGE)
    assert represent.protocol() == {"layer": "penultimate", "straight_through": "none"}
    assert represent.straight.kinds == ("native_layer_norm",)


def test_nothing_is_left_behind():
    network = classifier(Ended(nn.ReLU()))
    weights = torch.arange(1.0, 17.0)
    before = gradient(Representation(network), weights)
    gradient(Representation.of(network, IMAGE), weights)
    assert torch.equal(gradient(Representation(network), weights), before)
    assert not network.network.fc._forward_pre_hooks


def test_a_network_that_uses_what_its_relu_writes_into_is_refused():
    class Careless(Ended):
        def forward(self, images):
            hidden = self.conv(images)
            self.end(hidden)
            return self.fc(hidden.mean((2, 3)))

    with pytest.raises(UserError, match="straight_through to false"):
        Representation.of(classifier(Careless(nn.ReLU(inplace=True))), IMAGE)


@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [
        ("lit_robust/resnet_tiny", None, 128),
        ("torchvision/alexnet", None, 4096),
        ("torchvision/squeezenet1_1", "features", 512),
        ("timm/vit_tiny_patch16_224", None, 192),
    ],
)
def test_real_architectures(name, layer, width):
    network = build_classifier(Network(name, 10)).eval()
    side = 224 if "vit" in name else 64
    represent = Representation.of(network, torch.rand(1, 3, side, side), layer)
    assert represent(torch.rand(1, 3, side, side)).shape == (1, width)
    assert represent.protocol()["straight_through"] == ("none" if "vit" in name else ["relu"])


def test_no_linear_layer_is_said():
    network = build_classifier(Network("torchvision/squeezenet1_1", 10)).eval()
    with pytest.raises(UserError, match="name a layer"):
        Representation.of(network, torch.rand(1, 3, 64, 64))
