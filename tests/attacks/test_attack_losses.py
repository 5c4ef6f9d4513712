import math

import torch

from lit_robust.attacks.losses import LOSSES


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


def test_margin_still_has_a_gradient_where_cross_entropy_has_none() -> None:
    logits = torch.tensor([[200.0, 0.0, 1.0]], requires_grad=True)
    (flat,) = torch.autograd.grad(LOSSES["cross_entropy"](logits, torch.tensor([0])).sum(), logits)
    (steep,) = torch.autograd.grad(LOSSES["margin"](logits, torch.tensor([0])).sum(), logits)
    assert flat.abs().max() == 0
    assert steep.tolist() == [[-1.0, 0.0, 1.0]]
