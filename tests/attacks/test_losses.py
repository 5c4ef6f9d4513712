import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks.losses import LOSSES, TARGETED, Objective, divergence, dlr, dlr_targeted, random_targets
from lit_robust.core.errors import UserError

# Ranked: 5, 3, 1, -1; the labels are the best, the second and the last class.
RANKED = torch.tensor([[5.0, 1.0, 3.0, -1.0]] * 3)
RANKED_LABELS = torch.tensor([0, 2, 3])


def test_dlr_is_the_paper_s_ratio() -> None:
    # Highest wrong logit minus the right one, over the first minus the third: (3-5)/4, (5-3)/4, (5+1)/4.
    assert dlr(RANKED, RANKED_LABELS).tolist() == [-0.5, 0.5, 1.5]
    assert LOSSES["dlr"] is dlr


def test_targeted_dlr_is_the_paper_s_ratio() -> None:
    targets = torch.tensor([2, 0, 1])
    # Target's logit minus the label's, over the first minus the mean of the third and the fourth, 5 - 0.
    assert dlr_targeted(RANKED, RANKED_LABELS, targets).tolist() == pytest.approx([-2 / 5, 2 / 5, 2 / 5])


def test_neither_scale_nor_shift_of_the_logits_changes_dlr() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    targets = (labels + 1) % 7
    # Exact but for the rounding of logits near 100, and of quotients by small differences of them.
    torch.testing.assert_close(dlr(64 * logits + 32, labels), dlr(logits, labels), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        dlr_targeted(64 * logits + 32, labels, targets), dlr_targeted(logits, labels, targets), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(dlr(logits, labels) > 0, logits.argmax(1) != labels)


def test_dlr_is_that_of_torchattacks(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(40, 10, generator=generator), torch.randint(10, (40,), generator=generator)
    targets: Tensor = (labels + torch.randint(1, 10, (40,), generator=generator)) % 10
    torch.testing.assert_close(dlr(logits, labels), torchattacks.APGD(network).dlr_loss(logits, labels))
    theirs = torchattacks.APGDT(network).dlr_loss_targeted(logits, labels, targets)
    torch.testing.assert_close(dlr_targeted(logits, labels, targets), theirs)


def test_too_few_classes_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="dlr compares 3 logits, the network has 2: use cross_entropy"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(UserError, match="targeted dlr compares 4 logits, the network has 3: use cross_entropy"):
        dlr_targeted(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))


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
    # The deviation of 200, 0 and 50 over their mean is 84.98. Divided to 3 they are 7.06, 0 and 1.77, and the first
    # leads by 5.30: exp(1.77) / (1 + exp(1.77)) = 0.854 of the rise is the third's.
    logits = torch.tensor([[200.0, 0.0, 50.0], [5000.0, 0.0, 1250.0], [3.0, 0.0, 1.0]])
    labels = torch.zeros(3, dtype=torch.int64)
    losses, gradient = saturated(lambda leaf: LOSSES["cross_entropy"](leaf, labels), logits * torch.tensor([[1.0]] * 3))
    spread = np.std(logits[:2].double().numpy(), axis=1, keepdims=True)
    soft = (logits[:2].double() * (3 / torch.from_numpy(spread))).softmax(1)[:, 1:]
    shares = soft / soft.sum(1, keepdim=True)
    torch.testing.assert_close(gradient[:2, 1:].double(), shares, rtol=1e-5, atol=0)
    assert gradient[:2, 0].tolist() == pytest.approx([-1.0, -1.0], rel=1e-5)
    # The order of the losses is still that of the margins, below every loss that fp32 tells from 0.
    assert losses[:2].tolist() == [-150.0, -3750.0]
    # Where the softmax is not saturated, nothing changes, to the last digit.
    assert torch.equal(losses[2:], F.cross_entropy(logits[2:], labels[2:], reduction="none"))
    plain = saturated(lambda leaf: F.cross_entropy(leaf, labels[2:], reduction="none"), logits[2:])
    assert torch.equal(gradient[2:], plain[1])


def test_a_class_that_stands_out_from_many_is_not_saturated_again() -> None:
    """A thousand logits of deviation 3 may have one that leads by 95; here it leads by 6."""
    logits = torch.zeros(1, 1000)
    logits[0, 0], logits[0, 1] = 6e5, 1e5
    _, gradient = saturated(lambda leaf: LOSSES["cross_entropy"](leaf, torch.tensor([0])), logits)
    soft = (logits.double() * (6 / 5e5)).softmax(1)[0, 1:]
    torch.testing.assert_close(gradient[0, 1:].double(), soft / soft.sum(), rtol=1e-5, atol=0)


def test_divergence_has_a_gradient_where_both_answers_are_saturated() -> None:
    clean = torch.tensor([[300.0, 0.0, 100.0], [3.0, 0.0, 1.0]]).log_softmax(1)
    logits = torch.tensor([[310.0, 60.0, 80.0], [2.0, 1.0, 1.0]])
    losses, gradient = saturated(lambda leaf: divergence(leaf, clean), logits)
    # Softmax less clean softmax, both of logits divided as the clean ones are to a deviation of 3, is the gradient.
    spread = np.std(clean[0].double().numpy())
    both = [(one[0].double() * 3 / spread).softmax(0) for one in (logits, clean)]
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


LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
TARGETS = torch.tensor([1, 0, 4, 4, 0, 2])


def test_random_targets_are_uniform_over_the_other_classes() -> None:
    labels = torch.full((40_000,), 2)
    targets = random_targets(labels, 5, torch.Generator().manual_seed(1))
    shares = torch.bincount(targets, minlength=5) / len(labels)
    assert shares[2] == 0
    # Four classes of a quarter: the standard deviation of a share is 0.0022, and five of them are allowed.
    torch.testing.assert_close(shares[[0, 1, 3, 4]], torch.full((4,), 0.25), rtol=0, atol=0.011)
    with pytest.raises(UserError, match="one class"):
        random_targets(labels, 1, torch.Generator())


def test_targeted_losses_rise_towards_the_target() -> None:
    rows = torch.arange(6)
    z, sorted_logits = LOGITS.double(), LOGITS.double().sort(1, descending=True).values
    log_probabilities = z - z.exp().sum(1, keepdim=True).log()
    others = torch.stack([torch.cat([row[:t], row[t + 1 :]]).max() for row, t in zip(z, TARGETS, strict=True)])
    expected = {
        "cross_entropy": log_probabilities[rows, TARGETS],
        "margin": z[rows, TARGETS] - others,
        # Croce and Hein 2020, equation 7 with its sign turned: (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2).
        "dlr": (z[rows, TARGETS] - z[rows, LABELS]) / (sorted_logits[:, 0] - sorted_logits[:, 2:4].mean(1)),
    }
    assert set(expected) == set(TARGETED)
    for name, values in expected.items():
        found = Objective(name, LABELS, TARGETS).loss(LOGITS)  # type: ignore[arg-type]
        torch.testing.assert_close(found.double(), values, rtol=1e-5, atol=1e-6)


def test_kl_is_the_divergence_of_the_clean_answer() -> None:
    clean = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).log_softmax(1)
    found = Objective("kl", LABELS, clean=clean).loss(LOGITS)
    p, q = clean.double().exp(), LOGITS.double().softmax(1)
    torch.testing.assert_close(found.double(), (p * (p / q).log()).sum(1), rtol=1e-5, atol=1e-6)


def test_what_ends_a_search_is_the_target_or_else_any_mistake() -> None:
    answers = torch.tensor([1, 1, 3, 3, 0, 0])
    assert Objective("margin", LABELS).reached(answers).tolist() == [True, False, True, False, True, False]
    aimed = Objective("margin", LABELS, TARGETS)
    assert aimed.reached(answers).tolist() == [True, False, False, False, True, False]
    half = aimed.select(torch.tensor([4, 0]))
    assert half.labels.tolist() == [4, 0]
    assert half.reached(answers[[4, 0]]).tolist() == [True, True]
    assert torch.equal(half.loss(LOGITS[[4, 0]]), aimed.loss(LOGITS)[[4, 0]])


def test_untargeted_cross_entropy_is_torch_s() -> None:
    expected = F.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.equal(Objective("cross_entropy", LABELS).loss(LOGITS), expected)
