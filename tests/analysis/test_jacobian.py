"""Norms of Jacobians: closed forms of a linear softmax and of a cache model, and torch's own Jacobian."""

import pytest
import torch
from torch import nn

from lit_robust.analysis.jacobian import estimated_jacobian_norm, jacobian_norm, seeds_of
from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class LinearSoftmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(48, 5)

    def forward(self, images):
        return self.fc(images.flatten(1))


def linear_softmax():
    torch.manual_seed(0)
    return LinearSoftmax()


def test_a_linear_softmax_has_a_closed_form():
    model = linear_softmax()
    p = model(IMAGES).detach().double().softmax(1)
    weights = model.fc.weight.detach().double()
    jacobians = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ weights
    torch.testing.assert_close(jacobian_norm(model, IMAGES), jacobians.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    of_logits = jacobian_norm(model, IMAGES, "logits")
    torch.testing.assert_close(of_logits, weights.norm().expand(3), rtol=1e-5, atol=0)


def test_a_memory_has_a_closed_form():
    keys = nn.functional.normalize(torch.randn(7, 48, generator=torch.Generator().manual_seed(3)), dim=1)
    labels, theta = torch.tensor([0, 1, 2, 0, 1, 2, 0]), 5.0

    def cache(images):  # log of p_c = sum of exp(theta q.mu) over the keys of a class, over that of all
        x = images.flatten(1)
        similar = theta * (x / x.norm(dim=1, keepdim=True)) @ keys.T
        return torch.stack([similar[:, labels == c].logsumexp(1) for c in range(3)], 1).log_softmax(1)

    x = IMAGES.flatten(1).double()
    length = x.norm(dim=1)
    q = x / length[:, None]
    weight = (theta * q @ keys.double().T).softmax(1)
    expected = torch.zeros(3, dtype=torch.float64)
    for row in range(3):
        tangent = (torch.eye(48, dtype=torch.float64) - torch.outer(q[row], q[row])) / length[row]
        mean = weight[row] @ keys.double()
        for c in range(3):
            of_class = weight[row] * (labels == c)
            p = of_class.sum()
            expected[row] += (theta * p * ((of_class / p) @ keys.double() - mean) @ tangent).square().sum()
    torch.testing.assert_close(jacobian_norm(cache, IMAGES), expected.sqrt(), rtol=1e-4, atol=0)


def test_a_network_against_torchs_own_jacobian():
    torch.manual_seed(0)
    network = build_classifier(Network("lit_robust/resnet_tiny", 4)).eval()
    images = torch.rand(2, 3, 16, 16)
    whole = torch.autograd.functional.jacobian(lambda x: network(x).softmax(1).sum(0), images)
    expected = whole.transpose(0, 1).flatten(1).double().norm(dim=1)
    network.train()
    torch.testing.assert_close(jacobian_norm(network, images), expected, rtol=1e-4, atol=0)
    assert network.training  # It was measured in eval mode, and is as it was.


def test_the_estimate_is_unbiased_and_says_its_error():
    model = linear_softmax()
    exact = jacobian_norm(model, IMAGES).square()
    found = estimated_jacobian_norm(model, IMAGES, 4000, torch.Generator().manual_seed(1))
    assert (((found.square - exact) / found.error).abs() < 4).all()
    # Of v^T A v with normal v the variance is 2 tr(A^2), where A = J J^T.
    p = model(IMAGES).detach().double().softmax(1)
    jacobians = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ model.fc.weight.detach().double()
    spread = (2 * (jacobians @ jacobians.transpose(1, 2)).square().flatten(1).sum(1)).sqrt()
    torch.testing.assert_close(found.error, spread / 4000**0.5, rtol=0.15, atol=0)


def test_an_images_probes_are_its_own():
    model = linear_softmax()
    whole = estimated_jacobian_norm(model, IMAGES, 3, seeds_of([0, 1, 2], 0))
    alone = estimated_jacobian_norm(model, IMAGES[1:2], 3, seeds_of([1], 0))
    torch.testing.assert_close(alone.square[0], whole.square[1])


def test_an_answer_without_a_gradient_is_said():
    with pytest.raises(UserError, match="no gradient"):
        jacobian_norm(lambda images: images.detach().flatten(1)[:, :4], IMAGES)
