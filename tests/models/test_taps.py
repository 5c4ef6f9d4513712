"""Taps against networks written out by hand: what a layer gives, and where a network goes on from something else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.models import Classifier, Network, build_classifier
from lit_robust.models.taps import (
    as_maps,
    changed,
    channel_axis,
    layer_of,
    layout_of,
    layout_of_grown,
    layout_of_square,
    named_layers,
    outputs,
    with_calls,
)

HALF, QUARTER = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Block(nn.Module):
    """A layer, an in-place ReLU that is called twice, a sum in place, and a head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)
        self.unused = nn.Linear(4, 5)
        self.lstm = nn.LSTM(4, 4)

    def forward(self, images):
        first = self.relu(self.conv(images))
        second = self.again(first)
        second += first
        hidden = self.relu(second).mean((2, 3))
        self.lstm(hidden[None])
        return self.head(hidden)


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def by_hand(block, images):
    """Return what the layers of a `Block` give, without anything in place."""
    conv = block.conv(images)
    again = block.again(F.relu(conv))
    last = F.relu(again + F.relu(conv))
    return {"conv": conv, "relu@1": F.relu(conv), "again": again, "relu@2": last, "relu": last}


@torch.no_grad()
def test_a_pass_ends_at_the_last_call_that_is_named(block, images):
    names = with_calls(block, images, ["conv", "relu", "again", "relu@1"])
    assert names == {"conv": "conv@1", "relu": "relu@2", "again": "again@1", "relu@1": "relu@1"}
    ran = []
    with block.head.register_forward_hook(lambda *_: ran.append("head")):
        found = outputs(block, images, list(names.values()))
        assert ran == []
        expected = by_hand(block, images)
        for name, call in names.items():
            assert torch.equal(found[call], expected[name]), name
        outputs(block, images, ["again@1", "relu"])
        assert ran == ["head"]
    assert not block.conv._forward_hooks
    with pytest.raises(UserError, match="never calls its layer 'unused'"):
        with_calls(block, images, ["conv", "unused"])


@torch.no_grad()
def test_outputs_before_others_change_them(block, images):
    expected = by_hand(block, images)
    found = outputs(block, images, list(expected))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert expected["conv"].min() < 0
    assert not block.conv._forward_hooks
    assert not block._forward_pre_hooks


@torch.no_grad()
def test_the_network_goes_on_with_what_is_put(block, images):
    expected = by_hand(block, images)
    for name in ("conv", "again", "relu@2"):
        with changed(block, name, lambda output: output.mul_(2)):
            found = block(images)
        if name == "conv":  # A positive factor passes a ReLU, and the two convolutions' biases do not grow with it.
            hidden = F.relu(block.again(2 * F.relu(expected["conv"])) + 2 * F.relu(expected["conv"]))
        elif name == "again":
            hidden = F.relu(2 * expected["again"] + F.relu(expected["conv"]))
        else:
            hidden = 2 * expected["relu@2"]
        torch.testing.assert_close(found, block.head(hidden.mean((2, 3))))
        assert not torch.allclose(found, block(images))
        assert not torch.allclose(found[0], found[1])


@torch.no_grad()
def test_a_module_that_is_called_twice_needs_the_call(block, images):
    with pytest.raises(UserError, match="'relu' several times: write which call, such as relu@1"):  # noqa: SIM117
        with changed(block, "relu", torch.zeros_like):
            block(images)
    with changed(block, "relu@1", torch.zeros_like):
        first = [block(images) for _ in range(2)]  # The count begins again with each pass.
    with changed(block, "relu@2", torch.zeros_like):
        second = block(images)
    assert torch.equal(second, block.head.bias.expand(2, 5))
    assert torch.equal(*first)
    assert not torch.equal(first[0], second)


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("cnov", r"no layer 'cnov' \(did you mean conv\?\): its first-level layers are conv, again"),
        ("relu@0", "no call '0': write a number from 1"),
        ("relu@3", "does not call its layer 'relu' 3 times"),
        ("unused", "never calls its layer 'unused' by itself"),
        ("lstm", "gives a tuple, not one tensor"),
    ],
)
def test_layers_that_cannot_be_tapped(block, images, layer, says):
    with pytest.raises(UserError, match=says):
        outputs(block, images, [layer])
    with pytest.raises(UserError, match=says), changed(block, layer, torch.zeros_like):
        block(images)


@torch.no_grad()
def test_wrappers_have_no_part_in_names(block, images, tmp_path):
    expected = outputs(block, images, ["again"])["again"]
    classifier = Classifier(block, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(classifier)
        for network in (classifier, parallel, nn.DataParallel(block), torch.compile(block, backend="eager")):
            assert named_layers(network).keys() == named_layers(block).keys()
            assert layer_of(network, "again@2") == (block.again, 2)
        unchanged = classifier(images)
        for network in (classifier, parallel):
            torch.testing.assert_close(outputs(network, images, ["again"])["again"], expected)
            with changed(network, "again", lambda output: output + 1):
                assert not torch.allclose(network(images), unchanged)
    finally:
        torch.distributed.destroy_process_group()


@torch.no_grad()
def test_memory_layout_and_autocast(block, images):
    expected = outputs(block, images, ["again"])["again"]
    last = outputs(block, images.contiguous(memory_format=torch.channels_last), ["again"])["again"]
    torch.testing.assert_close(last, expected)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = outputs(block, images, ["again"])["again"]
        with changed(block, "again", torch.zeros_like):
            block(images)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected, atol=0.05, rtol=0.05)


def test_gradients_pass_through_what_is_put(block, images):
    start = torch.zeros(2, 4, 8, 8, requires_grad=True)
    with changed(block, "again", lambda _: start.clone()):
        (found,) = torch.autograd.grad(block(images)[:, 0].sum(), start)
    conv = F.relu(block.conv(images))
    expected = (conv > 0) * block.head.weight[0, None, :, None, None] / 64
    torch.testing.assert_close(found, expected.expand_as(found))


def test_outputs_as_maps():
    torch.manual_seed(0)
    model = build_classifier(Network("timm/vit_tiny_patch16_224", 5)).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        found = outputs(model, images, ["blocks.1", "head"])
    assert layout_of(model, "head", found["head"], images) == "vectors"
    assert as_maps(found["head"], "vectors").shape == (2, 5, 1, 1)
    tokens = found["blocks.1"]
    assert layout_of(model, "blocks.1", tokens, images) == "tokens"
    maps = as_maps(tokens, "tokens")
    assert maps.shape == (2, tokens.shape[channel_axis("tokens")], 14, 14)
    assert torch.equal(maps[1, :, 2, 3], tokens[1, 1 + 2 * 14 + 3])
    last = torch.rand(2, 7, 7, 24)
    assert torch.equal(as_maps(last, "channels last")[1, 5], last[1, :, :, 5])
    with pytest.raises(UserError, match="34 tokens are not those of a square image"):
        as_maps(torch.rand(2, 34, 4), "tokens")


def test_layouts_by_shapes():
    square, oblong = (9, 3, 64, 64), (9, 3, 64, 48)
    assert layout_of_square((9, 512, 2, 2), square) == "channels first"
    assert layout_of_square((9, 2, 2, 768), square) == "channels last"
    assert layout_of_square((9, 32, 32, 32), square) is None
    assert layout_of_square((9, 4, 16, 8), square) is None
    assert layout_of_square((9, 64, 64, 48), oblong) is None
    assert layout_of_grown((9, 32, 32, 24), (1, 32, 64, 48)) == "channels first"
    assert layout_of_grown((9, 32, 24, 32), (1, 64, 48, 32)) == "channels last"
    assert layout_of_grown((9, 512, 1, 1), (1, 512, 1, 1)) == "channels first"
    assert layout_of_grown((9, 4, 16, 8), (1, 4, 64, 8)) is None
