import pytest
import torch
from torch.nn import functional as F

from lit_robust.attacks.objective import TARGETED, Objective, random_targets
from lit_robust.core.errors import UserError

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
