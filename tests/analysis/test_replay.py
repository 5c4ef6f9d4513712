"""What follows a layer, computed alone, against whole passes with the layer's output changed by a tap."""

import pytest
import torch
from torch import nn
from torchvision.models import alexnet, resnet18

from lit_robust.analysis.layers import stages
from lit_robust.analysis.replay import pooled_head, record
from lit_robust.core.errors import UserError
from lit_robust.models import Classifier, Network, build_classifier
from lit_robust.models.taps import changed


def network(name, size):
    torch.manual_seed(0)
    classifier = build_classifier(Network(name, 7)).eval()
    return classifier, torch.rand(1, 3, size, size)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("torchvision/alexnet", 64, [f"features.{number}" for number in (1, 4, 7, 9, 11)]),
        ("torchvision/resnet18", 64, ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("torchvision/squeezenet1_1", 64, [f"features.{number}" for number in (1, 3, 4, 6, 7, 9, 10, 11, 12)]),
        ("lit_robust/resnet_tiny", 48, ["relu", *(f"layers.{number}" for number in range(4))]),
    ],
)
def test_stages_are_the_papers_layers(name, size, layers):
    assert stages(*network(name, size)) == layers


@torch.no_grad()
def test_googlenet_has_the_papers_twelve_layers():
    # torchvision prepares its random weights for minutes; the structure alone is asked for.
    from torchvision.models import GoogLeNet

    found = stages(
        Classifier(GoogLeNet(7, aux_logits=False, init_weights=False).eval(), (0.5,) * 3, (0.5,) * 3),
        torch.rand(1, 3, 64, 64),
    )
    assert found[:4] == ["conv1", "conv2", "conv3", "inception3a"]
    assert len(found) == 12


class Skipping(nn.Module):
    """A network whose first layer is read again at the end, and one of whose modules is called before and after."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        first = self.relu(self.first(images))
        second = self.relu(self.second(first))
        return self.head(torch.cat([first, second], 1).square().mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("layer", ["first", "second", "relu@1", "relu@2", "head"])
def test_the_rest_of_a_network_with_a_skip_and_a_shared_module(layer):
    torch.manual_seed(0)
    classifier = Classifier(Skipping().eval(), (0.5,) * 3, (0.25,) * 3)
    check(classifier, torch.rand(1, 3, 6, 6), layer)
    assert "forward" not in vars(classifier.network.first)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("torchvision/densenet121", 64, "features.denseblock2"),
        ("torchvision/resnet18", 64, "layer2.0.bn2"),
        ("timm/vit_tiny_patch16_224", 224, "blocks.5"),
    ],
)
def test_the_rest_of_known_networks(name, size, layer):
    check(*network(name, size), layer)


def check(classifier, image, layer):
    recording = record(classifier, image)
    output = recording.call_of(layer).output
    changes = torch.cat([output, output * 0.5, torch.zeros_like(output)])
    with changed(classifier, layer, lambda _: changes.clone()):
        expected = classifier(image.repeat(3, 1, 1, 1))
    before = changes.clone()
    torch.testing.assert_close(recording.rest(layer, changes), expected)
    assert torch.equal(changes, before)
    torch.testing.assert_close(expected[:1], classifier(image))
    assert not torch.allclose(expected[1], expected[2])


class Convolutions(nn.Module):
    """Convolutions of every kind after the first: what one channel changes is known only of those without groups."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.plain = nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.point, self.grouped = nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.Conv2d(6, 8, 3, groups=2)
        self.same, self.wrapped = (
            nn.Conv2d(6, 8, 3, padding="same"),
            nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
        )
        self.last = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(40, 5)

    def forward(self, images):
        maps = self.first(images).relu_()
        plain = self.last(self.plain(maps).relu_())
        parts = [plain, self.point(maps), self.grouped(maps), self.same(maps), self.wrapped(maps)]
        return self.head(torch.cat([part.square().mean((2, 3)) for part in parts], 1))


@torch.no_grad()
@pytest.mark.parametrize("build", [Convolutions, lambda: resnet18(num_classes=7), lambda: alexnet(num_classes=7)])
def test_a_convolution_adds_what_the_one_channel_that_differs_changes(build, monkeypatch):
    torch.manual_seed(0)
    classifier = Classifier(build().eval(), (0.5,) * 3, (0.25,) * 3)
    image = torch.rand(1, 3, 64, 64)
    recording = record(classifier, image)
    layer = next(call.name for call in recording.calls if isinstance(call.module, nn.Conv2d | nn.ReLU))
    output = recording.call_of(layer).output
    one = output.repeat(4, 1, 1, 1)
    one[0, 2], one[1, 5], one[2, 5] = 0, 0, one[2, 5] * 3  # And the last is as it was.
    two = one.clone()
    two[1, 0] = 0
    convolved = []
    own = nn.Conv2d.forward

    def counted(module, images):
        convolved.append(module)
        return own(module, images)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    counts = []
    for changes in (one, two):
        with changed(classifier, layer, lambda _, changes=changes: changes.clone()):
            expected = classifier(image.repeat(4, 1, 1, 1))
        convolved.clear()
        torch.testing.assert_close(recording.rest(layer, changes), expected)
        counts.append(len(convolved))
    # Those of several kinds, or the stem's neighbour, add; where two channels differ all convolve.
    assert counts[1] - counts[0] == (2 if build is Convolutions else 1)


@torch.no_grad()
def test_a_head_of_pooling_and_a_linear_layer_is_seen():
    classifier, image = network("lit_robust/resnet_tiny", 48)
    recording = record(classifier, image)
    means, weights = pooled_head(recording, "layers.3")
    torch.testing.assert_close(weights @ means + classifier.network.fc.bias, recording.logits[0])
    assert pooled_head(recording, "layers.2") is None
    assert pooled_head(recording, "relu") is None


def test_a_network_without_maps():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(UserError, match="No layer of this network gives maps by itself: name some with --layers"):
        stages(classifier, torch.rand(1, 3, 2, 2))
