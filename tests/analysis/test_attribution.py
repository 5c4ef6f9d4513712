"""Attributions: Grad-CAM by its own formula, integrated gradients by their completeness and a closed form."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_robust.analysis.attribution import grad_cam, integrated_gradients
from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier

pytest.importorskip("captum")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([1, 3])


def network():
    torch.manual_seed(0)
    return build_classifier(Network("lit_robust/resnet_tiny", 4))


def test_grad_cam_is_selvarajus_formula():
    model = network()
    model.train()
    layer = model.network.layers[3]
    found = grad_cam(model, layer, IMAGES, CLASSES)
    assert model.training
    model.eval()
    kept = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(IMAGES)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, CLASSES[:, None]).sum(), kept[0])
    cam = F.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True))
    expected = F.interpolate(cam, (32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected.detach())
    assert found.max() > 0


def test_integrated_gradients_add_up_to_what_the_logit_gains():
    model = network().eval()
    found = integrated_gradients(model, IMAGES, CLASSES, steps=200)
    with torch.no_grad():
        gain = (model(IMAGES) - model(torch.zeros_like(IMAGES))).gather(1, CLASSES[:, None])[:, 0]
    torch.testing.assert_close(found.flatten(1).sum(1), gain, rtol=0.05, atol=0.05)


def test_integrated_gradients_of_a_linear_network_are_weights_times_pixels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    found = integrated_gradients(model, IMAGES, CLASSES, steps=3, baseline=0.25)
    expected = model[1].weight[CLASSES].view(2, 3, 32, 32) * (IMAGES - 0.25)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_a_layer_without_maps_is_said():
    model = network()
    with pytest.raises(UserError, match="layer of maps"):
        grad_cam(model, model.network.fc, IMAGES, CLASSES)
