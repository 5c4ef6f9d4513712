"""Total variation against closed forms, and matching against SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from lit_robust.analysis.smoothness import (
    gradient_roughness,
    loss_gradients,
    map_variation,
    matched_filters,
    noisy,
    total_variation,
    weight_variation,
    weighted_mean,
)
from lit_robust.analysis.smoothness_study import filters_picture, weight_results
from lit_robust.core.errors import UserError
from lit_robust.models import Classifier, Network, build_classifier

HEIGHT, WIDTH = 7, 9


def checkerboard():
    return 1 - 2.0 * ((torch.arange(HEIGHT)[:, None] + torch.arange(WIDTH)) % 2)


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        (torch.full((HEIGHT, WIDTH), 3.0), 0),
        (0.4 * (torch.arange(WIDTH) > 3).float().expand(HEIGHT, WIDTH), 0.4 * HEIGHT),
        (0.5 * checkerboard(), 2 * 0.5 * (HEIGHT * (WIDTH - 1) + WIDTH * (HEIGHT - 1))),
    ],
)
def test_closed_forms(maps, expected):
    torch.testing.assert_close(total_variation(torch.stack([maps, 2 * maps])), torch.tensor([1.0, 2.0]) * expected)


class Filter(nn.Module):
    """One convolution, and a head."""

    def __init__(self, kernel, stride):
        super().__init__()
        self.conv = nn.Conv2d(3, len(kernel), kernel.shape[-1], stride, bias=False)
        self.conv.weight.data = kernel
        self.head = nn.Linear(len(kernel), 5)

    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_noise_through_a_filter(stride):
    """E|difference| = 2 sigma sqrt((rho_0 - rho_s) / pi), rho the kernel's autocorrelation summed over its inputs."""
    torch.manual_seed(0)
    kernel = torch.randn(2, 3, 3, 3)
    classifier = Classifier(Filter(kernel, stride).eval(), (0.0,) * 3, (1.0,) * 3)
    sigma, images = 0.02, torch.full((16, 3, 96, 96), 0.5)  # So little noise that nothing is clipped.
    found = map_variation(classifier, [(range(16), images)], ["conv"], sigma)["conv"]
    assert found.clean.max() < 1e-2  # Constant up to the rounding of sums.
    weights = kernel.double().numpy()
    side = (96 - 3) // stride + 1
    for channel in range(2):
        rho_0 = (weights[channel] ** 2).sum()
        down = (weights[channel, :, stride:] * weights[channel, :, :-stride]).sum()
        across = (weights[channel, :, :, stride:] * weights[channel, :, :, :-stride]).sum()
        each = sum(2 * sigma * math.sqrt((rho_0 - rho) / math.pi) for rho in (down, across))
        assert float(found.noisy[channel]) == pytest.approx(each * side * (side - 1), rel=0.02)
    assert found.differences == 2 * side * (side - 1)


def test_noise_is_the_images_own():
    images = torch.full((4, 3, 64, 64), 0.5)
    whole = noisy(images, range(4), 0.08, 0)
    assert torch.equal(noisy(images[2:], [2, 3], 0.08, 0), whole[2:])
    assert not torch.equal(noisy(images, range(4), 0.08, 1), whole)
    assert float((whole - 0.5).std()) == pytest.approx(0.08, rel=0.01)
    assert float(total_variation((whole - 0.5).double()).mean() / (2 * 64 * 63)) == pytest.approx(
        2 * 0.08 / math.sqrt(math.pi), rel=0.01
    )
    assert noisy(torch.ones(1, 3, 8, 8), [0], 0.5, 0).max() == 1


def test_batches_do_not_matter():
    torch.manual_seed(0)
    classifier = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    images = torch.rand(6, 3, 1, 1).expand(-1, -1, 16, 16) * torch.linspace(0.5, 1, 16)
    parts = [([0, 1, 2, 3], images[:4]), ([4, 5], images[4:])]
    whole = map_variation(classifier, [(range(6), images)], ["layers.1"])["layers.1"]
    found = map_variation(classifier, parts, ["layers.1"])["layers.1"]
    torch.testing.assert_close(found.clean, whole.clean)
    torch.testing.assert_close(found.noisy, whole.noisy)
    assert whole.slope > 1
    assert (whole.log_ratios > 0).double().mean() > 0.9


def test_weights_by_hand():
    kernel = torch.zeros(2, 3, 2, 2)
    kernel[0, 1] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # 4, over a sum of 2
    kernel[1] = 0.5  # Constant: 0
    network = nn.Sequential(Filter(kernel, 1).conv, nn.Conv2d(2, 4, 1))
    layers = weight_variation(network)
    assert [one.of_channels.tolist() for one in layers] == [[4, 0], [0, 0, 0, 0]]
    assert layers[0].normalised == 2 / 4  # Of one kernel with a variation and three without; two are zero.
    assert weighted_mean(layers, mean_over_inputs=False, with_points=True) == pytest.approx(4 / 6)
    assert weighted_mean(layers, mean_over_inputs=False, with_points=False) == 2
    assert weighted_mean(layers, mean_over_inputs=True, with_points=False) == pytest.approx(2 / 3)
    classifier = Classifier(network, (0.5,) * 3, (0.25,) * 3)
    named = {r.metric: r.value for r in weight_results(classifier)}
    assert named["weight_tv_mean_sum over inputs, kernels without 1x1"] == 2
    assert filters_picture(classifier).shape == (8, 18, 3)
    with pytest.raises(UserError, match="has no convolutions"):
        weight_variation(nn.Linear(2, 2))


def test_gradients_of_a_linear_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    classifier = Classifier(network.eval(), (0.0,) * 3, (1.0,) * 3)
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2])
    chances = classifier(images).softmax(1).detach() - nn.functional.one_hot(labels, 5)
    gradients = (chances @ network[1].weight.detach()).view(3, 3, 4, 4).double()
    expected = [sum(float(total_variation(channel)) for channel in g) / float(g.abs().sum()) for g in gradients]
    torch.testing.assert_close(
        gradient_roughness(loss_gradients(classifier, images, labels)), torch.tensor(expected).double()
    )


def test_matching_is_scipys():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, (5, 3, 2, 2)).astype(float), rng.integers(0, 6, (7, 3, 2, 2)).astype(float)
    other[4] = 2  # Constant: matches nothing.
    one[3] = 1
    table = np.array(
        [[spearmanr(a.ravel(), b.ravel()).statistic if b.std() and a.std() else -2 for b in other] for a in one]
    )
    found = matched_filters(torch.from_numpy(one), torch.from_numpy(other))
    assert found.pairs[:, 0].tolist() == [0, 1, 2, 4]
    assert found.pairs[:, 1].tolist() == table.argmax(1)[[0, 1, 2, 4]].tolist()
    np.testing.assert_allclose(found.correlation.numpy(), table.max(1)[[0, 1, 2, 4]], atol=1e-12)
    unique = matched_filters(torch.from_numpy(one), torch.from_numpy(other), one_to_one=True)
    assert len(set(unique.pairs[:, 1].tolist())) == 4
    assert unique.correlation.sum() <= found.correlation.sum() + 1e-12
    with pytest.raises(UserError, match="compare two networks of one architecture"):
        matched_filters(torch.ones(2, 3), torch.ones(2, 4))
