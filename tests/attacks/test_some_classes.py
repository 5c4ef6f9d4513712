"""Attacks among some classes against the same on a network that has no others."""

import pytest
import torch
from torch import Tensor, nn

from lit_robust.attacks import APGD, FAB, PGD, Attack
from lit_robust.attacks.some_classes import SomeClasses
from lit_robust.metrics.base import among_classes

CLASSES = [1, 3, 4, 6, 9]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "attack",
    [PGD("l2", 0.3, 0.1, 3), PGD("l2", 0.3, 0.1, 3, loss="dlr"), APGD("linf", 0.02, 5, "dlr", 2), FAB(steps=5)],
)
def test_it_is_a_network_without_the_other_classes(network: nn.Module, images: Tensor, attack: Attack) -> None:
    narrow = SomeClasses(network, CLASSES, CPU)
    assert isinstance(network, nn.Sequential)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    head = nn.Linear(48, 5)
    head.load_state_dict({"weight": last.weight[CLASSES], "bias": last.bias[CLASSES]})
    alone = nn.Sequential(*network[:-1], head).eval()
    with torch.no_grad():
        labels = alone(images).argmax(1)
        masked = among_classes(network(images), CLASSES).argmax(1)
    assert torch.equal(narrow.numbers(labels), masked)
    assert torch.equal(narrow.places(masked), labels)
    with torch.inference_mode():
        found = attack(narrow, images, labels, generator=torch.Generator().manual_seed(0))
    expected = attack(alone, images, labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.success, expected.success)
    # Matrices of other shapes are summed in another order, which may turn the sign of a pixel's gradient in Linf.
    if attack.norm == "l2":
        torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-4)


def test_no_choice_leaves_all_as_it_is(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    whole = SomeClasses(network, (), CPU)
    with torch.no_grad():
        assert torch.equal(whole(images), network(images))
    assert torch.equal(whole.places(labels), labels)
    assert torch.equal(whole.numbers(labels), labels)
