import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks.losses import LOSSES, divergence


def test_values_are_those_worked_out_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    labels = torch.tensor([0, 2])
    # log of the sum of exponentials minus the right logit; highest wrong logit minus the right one.
    crosses = [math.log(math.exp(2) + 1 + math.e) - 2, math.log(1 + math.exp(3) + math.e) - 1]
    torch.testing.assert_close(LOSSES["cross_entropy"](logits, labels), torch.tensor(crosses), rtol=1e-6, atol=0)
    assert LOSSES["margin"](logits, labels).tolist() == [-1.0, 2.0]
    # All logits lower by 9: a margin is a difference, and 0 is no logit.
    assert LOSSES["margin"](logits - 9, labels).tolist() == [-1.0, 2.0]


def test_half_precision_logits_give_float32_losses() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    for loss in LOSSES.values():
        half = loss(logits.bfloat16(), labels)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, loss(logits.bfloat16().float(), labels))


def saturated(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses and their gradient, of largest value 1."""
    leaf = logits.clone().requires_grad_(True)
    losses = loss(leaf)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient / gradient.abs().amax(1, keepdim=True)


def test_cross_entropy_has_a_gradient_where_the_softmax_is_saturated() -> None:
    # Divided by 200 / 6 the logits are 6, 0 and 1.5: exp(1.5) / (1 + exp(1.5)) = 0.8176 of the rise is the third's.
    logits = torch.tensor([[200.0, 0.0, 50.0], [5000.0, 0.0, 1250.0], [3.0, 0.0, 1.0]])
    labels = torch.zeros(3, dtype=torch.int64)
    losses, gradient = saturated(lambda leaf: LOSSES["cross_entropy"](leaf, labels), logits * torch.tensor([[1.0]] * 3))
    lead = torch.tensor([150.0, 3750.0])
    soft = (logits[:2] * (6 / lead)[:, None]).double().softmax(1)[:, 1:]
    shares = soft / soft.sum(1, keepdim=True)
    torch.testing.assert_close(gradient[:2, 1:].double(), shares, rtol=1e-5, atol=0)
    assert gradient[:2, 0].tolist() == pytest.approx([-1.0, -1.0], rel=1e-5)
    # The order of the losses is still that of the margins, below every loss that fp32 tells from 0.
    assert losses[:2].tolist() == [-150.0, -3750.0]
    # Where the softmax is not saturated, nothing changes, to the last digit.
    assert torch.equal(losses[2:], F.cross_entropy(logits[2:], labels[2:], reduction="none"))
    plain = saturated(lambda leaf: F.cross_entropy(leaf, labels[2:], reduction="none"), logits[2:])
    assert torch.equal(gradient[2:], plain[1])


def test_divergence_has_a_gradient_where_both_answers_are_saturated() -> None:
    clean = torch.tensor([[300.0, 0.0, 100.0], [3.0, 0.0, 1.0]]).log_softmax(1)
    logits = torch.tensor([[310.0, 60.0, 80.0], [2.0, 1.0, 1.0]])
    losses, gradient = saturated(lambda leaf: divergence(leaf, clean), logits)
    # The clean answer leads by 200; softmax less clean softmax, both of logits over 200 / 6, is the gradient.
    both = [(one[0].double() * 6 / 200).softmax(0) for one in (logits, clean)]
    expected = both[0] - both[1]
    torch.testing.assert_close(gradient[0].double(), expected / expected.abs().max(), rtol=1e-4, atol=1e-6)
    assert -1 < losses[0] < 0
    assert torch.equal(losses[1:], divergence(logits[1:], clean[1:]))
    assert torch.equal(losses[1], F.kl_div(logits[1].log_softmax(0), clean[1], log_target=True, reduction="sum"))
    # Nearer to the clean answer is a lower loss, and any answer that is not saturated a higher one.
    nearer = divergence(torch.tensor([[300.0, 10.0, 100.0]]), clean[:1])
    away = divergence(torch.tensor([[100.0, 95.0, 0.0]]), clean[:1])
    assert nearer < losses[0] < away


def test_a_class_that_cannot_be_leaves_numbers_numbers() -> None:
    impossible = torch.tensor([[0.0, float("-inf"), float("-inf")], [40.0, float("-inf"), 0.0]], requires_grad=True)
    losses = LOSSES["cross_entropy"](impossible, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(losses.sum(), impossible)
    assert losses.tolist() == [0.0, -40.0]
    assert not gradient.isnan().any()
    assert not gradient[0].any()
