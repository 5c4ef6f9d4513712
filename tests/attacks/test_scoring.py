import pytest
import torch

from lit_robust.attacks.losses import cross_entropy
from lit_robust.attacks.scoring import check_numbers, score
from lit_robust.core.errors import UserError


def test_ties_go_to_the_lower_class_and_losses_are_per_image() -> None:
    logits = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    verdict = score(lambda images: logits, torch.zeros(3, 3, 1, 1), torch.tensor([0, 1, 1]), cross_entropy)
    assert verdict.success.tolist() == [False, True, False]
    assert verdict.loss[:2].tolist() == pytest.approx([0.6931472] * 2)


def test_autocast_around_a_score_is_off_inside() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    labels = torch.tensor([0, 1])
    plain = score(network, images, labels, cross_entropy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(images).dtype == torch.bfloat16
        inside = score(network, images, labels, cross_entropy)
    assert torch.equal(plain.loss, inside.loss)


def test_a_loss_that_is_not_a_number_is_refused_and_an_infinite_one_is_not() -> None:
    check_numbers(torch.tensor([1.0, float("inf")]))
    with pytest.raises(UserError, match="for 1 of 2 attacked images"):
        check_numbers(torch.tensor([1.0, float("nan")]))
