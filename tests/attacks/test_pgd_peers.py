"""PGD against Foolbox 3 and torchattacks: the same network, images and settings give the same images.

Both peers step, project and clamp in our order and differ in how they keep from dividing by zero, which the
gradients here are far too long to feel; 1e-4 is 1/40 of a grey level and allows for rounding over the steps.
"""

from typing import Any

import eagerpy
import foolbox
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lit_robust.attacks import PGD


def foolbox_images(attack: foolbox.Attack, network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, clipped, _ = attack(model, images, labels, epsilons=eps)
    return clipped


def check_same(ours: Tensor, theirs: Tensor, clean: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours - clean).abs().amax((1, 2, 3)).min() > 0.01, "every image should have moved"


@pytest.mark.parametrize(("eps", "step_size", "steps"), [(0.5, 0.1, 7), (3.0, 0.5, 7), (0.3, 0.4, 5)])
def test_l2_is_the_peers_l2(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, step_size: float, steps: int
) -> None:
    ours = PGD(eps=eps, step_size=step_size, steps=steps)(network, images, labels)
    peer = foolbox.attacks.L2PGD(abs_stepsize=step_size, steps=steps, random_start=False)
    check_same(ours.images, foolbox_images(peer, network, images, labels, eps), images)
    other = torchattacks.PGDL2(network, eps=eps, alpha=step_size, steps=steps, random_start=False)
    check_same(ours.images, other(images, labels), images)
    with torch.no_grad():
        assert torch.equal(ours.success, network(ours.images).argmax(1) != labels)


class SparseDescent(foolbox.attacks.SparseL1DescentAttack):
    """Foolbox's own with another projection, by bisection: its own (3.3.4) makes 2 of 1 where every value is 1."""

    def project(self, x: Any, x0: Any, epsilon: float) -> Any:
        offset = (x - x0).raw.double()
        low, high = torch.zeros(len(offset), 1, 1, 1), offset.abs().amax((1, 2, 3), keepdim=True)
        for _ in range(60):
            middle = (low + high) / 2
            too_long = (offset.abs() - middle).clamp_min(0).sum((1, 2, 3), keepdim=True) > epsilon
            low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
        outside = offset.abs().sum((1, 2, 3), keepdim=True) > epsilon
        shrunk = offset.sign() * (offset.abs() - high).clamp_min(0)
        return x0 + eagerpy.astensor(torch.where(outside, shrunk, offset).float())


@pytest.mark.parametrize(("eps", "step_size", "steps"), [(12.0, 2.0, 10), (3.0, 1.0, 7)])
def test_l1_is_foolboxs_sparse_descent(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, step_size: float, steps: int
) -> None:
    ours = PGD(norm="l1", eps=eps, step_size=step_size, steps=steps)(network, images, labels).images
    peer = SparseDescent(abs_stepsize=step_size, steps=steps, random_start=False)
    check_same(ours, foolbox_images(peer, network, images, labels, eps), images)
    length = (ours - images).abs().sum((1, 2, 3))
    assert length.max() <= eps * (1 + 1e-6)
    assert length.max() > 0.8 * eps, "the ball should have been left and entered"


@pytest.mark.parametrize(("eps", "step_size", "steps"), [(8 / 255, 2 / 255, 7), (0.1, 0.2, 3)])
def test_linf_is_the_peers_linf(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, step_size: float, steps: int
) -> None:
    ours = PGD(norm="linf", eps=eps, step_size=step_size, steps=steps).perturb(network, images, labels)
    peer = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=False)
    check_same(ours, foolbox_images(peer, network, images, labels, eps), images)
    other = torchattacks.PGD(network, eps=eps, alpha=step_size, steps=steps, random_start=False)
    check_same(ours, other(images, labels), images)
