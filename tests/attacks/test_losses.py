import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lit_robust.attacks.losses import LOSSES, dlr, dlr_targeted
from lit_robust.core.errors import UserError

# Ranked: 5, 3, 1, -1; the labels are the best, the second and the last class.
LOGITS = torch.tensor([[5.0, 1.0, 3.0, -1.0]] * 3)
LABELS = torch.tensor([0, 2, 3])


def test_dlr_is_the_paper_s_ratio() -> None:
    # Highest wrong logit minus the right one, over the first minus the third: (3-5)/4, (5-3)/4, (5+1)/4.
    assert dlr(LOGITS, LABELS).tolist() == [-0.5, 0.5, 1.5]
    assert LOSSES["dlr"] is dlr


def test_targeted_dlr_is_the_paper_s_ratio() -> None:
    targets = torch.tensor([2, 0, 1])
    # Target's logit minus the label's, over the first minus the mean of the third and the fourth, 5 - 0.
    assert dlr_targeted(LOGITS, LABELS, targets).tolist() == pytest.approx([-2 / 5, 2 / 5, 2 / 5])


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
