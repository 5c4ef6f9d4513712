"""What a layer gives out, against the same modules called by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.models import Classifier, Network, build_classifier


class Attending(nn.Module):
    """Logits by an attention, whose output is a tuple and whose last projection is no call of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.head = nn.Linear(3, 4)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return build_classifier(Network("torchvision/resnet18", 5)).eval()


def test_layers_whose_output_is_changed_in_place(resnet):
    """Batch norms of a residual block, which an in-place ReLU and an in-place sum follow."""
    images = torch.rand(2, 3, 64, 64)
    block = resnet.network.layer4[1]
    with torch.no_grad():
        before = resnet.features(images, "layer4.0")
        first = block.bn1(block.conv1(before))
        second = block.bn2(block.conv2(F.relu(first)))
        found = {layer: resnet.features(images, f"layer4.1{layer}") for layer in (".bn1", ".bn2", "")}
    # The same kernels on the same numbers, of which the memory layout alone may differ.
    torch.testing.assert_close(found[".bn1"], first)
    torch.testing.assert_close(found[".bn2"], second)
    torch.testing.assert_close(found[""], F.relu(second + before))
    assert first.min() < 0
    assert second.min() < 0


def test_a_module_called_twice_gives_its_last_output(resnet):
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(resnet.features(images, "layer4.1.relu"), resnet.features(images, "layer4.1"))


def test_gradients_go_through_the_features():
    torch.manual_seed(0)
    model = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    weights = torch.randn(2, 16, 32, 32)
    (found,) = torch.autograd.grad((model.features(images, "bn1") * weights).sum(), images)
    by_hand = model.network.bn1(model.network.conv1((images - model.mean) / model.std))
    (expected,) = torch.autograd.grad((by_hand * weights).sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 0.1


def test_layers_without_a_tensor():
    model = Classifier(Attending(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()
    with pytest.raises(UserError, match="'attention' gives a tuple, not one tensor: choose another"):
        model.features(torch.rand(2, 3, 4, 4), "attention")
    with pytest.raises(UserError, match="never calls its layer 'attention.out_proj' by itself: choose another"):
        model.features(torch.rand(2, 3, 4, 4), "attention.out_proj")
    assert not model.network.attention._forward_hooks
