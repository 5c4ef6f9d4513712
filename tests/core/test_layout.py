"""Which networks get images with channels last, and that one that cannot take them is asked again."""

import pytest
import torch
from torch import nn

from lit_robust.attacks import APGD, PGD
from lit_robust.core.layout import ChannelsLast, in_fast_layout
from lit_robust.models import Network, build_classifier


class Seen(nn.Module):
    """Notes how its images lie."""

    def __init__(self, flatten):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 3)
        self.flatten = flatten
        self.layouts = []

    def forward(self, images):
        self.layouts.append("last" if images.is_contiguous(memory_format=torch.channels_last) else "first")
        return self.last(self.flatten(self.first(images).relu()))


def by_reshape(features):
    return features.flatten(1)


def by_view(features):
    return features.view(len(features), -1)


IMAGES, LABELS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
ATTACK = PGD(norm="linf", eps=0.1, step_size=0.03, steps=3)


def test_a_plain_network_is_attacked_with_channels_last():
    model = Seen(by_reshape)
    found = ATTACK(model, IMAGES, LABELS)
    assert model.layouts == ["last"] * 3 + ["first"]  # The verdict is the network's own.
    assert found.images.is_contiguous()
    assert model.first.weight.is_contiguous()
    APGD(steps=3)(model, IMAGES, LABELS, generator=torch.Generator())
    ATTACK.perturb(model, IMAGES, LABELS)
    assert model.layouts[-3:] == ["last"] * 3


def test_one_that_views_is_attacked_as_it_is_with_the_same_result():
    model, other = Seen(by_view), Seen(by_reshape)
    found, expected = ATTACK(model, IMAGES, LABELS), ATTACK(other, IMAGES, LABELS)
    assert model.layouts == ["last"] + ["first"] * 4
    torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.success, expected.success)


def test_an_error_of_the_networks_own_is_raised():
    def wrong(features):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        ATTACK(Seen(wrong), IMAGES, LABELS)


def test_what_needs_no_other_layout_is_left_alone():
    ours = build_classifier(Network("lit_robust/resnet_tiny", 8))
    for model in (ours, nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.Conv2d(3, 4, 1), lambda images: images):
        assert in_fast_layout(model, "cpu") is model
    plain = Seen(by_reshape)
    assert isinstance(in_fast_layout(plain, "cpu"), ChannelsLast)
    assert in_fast_layout(plain, "cuda") is plain
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        assert isinstance(in_fast_layout(plain, "cuda"), ChannelsLast) == torch.cuda.is_available()
