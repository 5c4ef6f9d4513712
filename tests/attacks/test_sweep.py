"""Sweeps against separate full runs at each eps."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_robust.attacks import PGD, Attack, CachePaperAttack, Sweep
from lit_robust.attacks.sweep import Verdicts
from lit_robust.core.errors import UserError

EPS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def random_of(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def run(sweep: Sweep, images: Tensor, labels: Tensor, chunk: int) -> tuple[dict[int, int], list[Verdicts]]:
    found = []
    for first in range(0, len(images), chunk):
        here = slice(first, first + chunk)
        found += sweep.add(list(range(len(images)))[here], images[here], labels[here])
    found += sweep.finish()
    final = [
        (number, int(count))
        for verdicts in found
        for number, count, over in zip(verdicts.numbers, verdicts.withstood, verdicts.final, strict=True)
        if over
    ]
    assert sorted(number for number, _ in final) == list(range(len(images))), "each sample is settled once"
    return dict(final), found


@pytest.mark.parametrize(
    ("attack", "scale"),
    [
        (PGD(eps=0.1, step_size=0.03, steps=5, start="sphere"), 1.0),
        (PGD(eps=0.1, step_size=0.03, steps=5, keep="first"), 1.0),
        (PGD(norm="linf", eps=0.1, step_size=0.02, steps=4, start="ball", keep="best", restarts=2), 0.04),
        (CachePaperAttack(), 0.2),
    ],
)
def test_the_curve_is_that_of_separate_runs_made_monotone(
    trained: tuple[nn.Module, Tensor, Tensor], attack: Attack, scale: float
) -> None:
    network, images, labels = trained
    attacks = [attack.with_eps(value * scale) for value in EPS]
    found, _ = run(Sweep(attacks, 16, network, None, random_of), images, labels, chunk=7)
    separate = torch.stack(
        [~single(network, images, labels, generator=[random_of(n) for n in range(200)]).success for single in attacks]
    )
    assert 0 < separate[-1].sum() < separate[0].sum(), "the strengths have to matter"
    # A sample withstands as many strengths as come before its first failure; one of 200 may round to the other side.
    expected = separate.cumprod(0).sum(0).tolist()
    assert sum(found[number] != count for number, count in enumerate(expected)) <= 1
    for strength in range(len(attacks)):
        curve = sum(count > strength for count in found.values())
        alone = int(separate[strength].sum())
        # The curve is never above, and at most half a point below: one sample of 200.
        assert alone - 1 <= curve <= alone


def test_batches_are_full_and_nothing_broken_is_attacked_again(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, images, labels = trained
    attacks = [PGD(eps=value, step_size=value / 3, steps=4) for value in EPS]
    found, verdicts = run(Sweep(attacks, 16, network, None, random_of), images, labels, chunk=7)
    for strength in range(len(attacks)):
        sizes = [len(entry.numbers) for entry in verdicts if entry.strength == strength]
        assert sum(sizes) == sum(count >= strength for count in found.values())
        assert all(size == 16 for size in sizes[:-1])


def test_transfer_is_judged_by_the_other_network(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, images, labels = trained

    class Other(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = network(images)
            return logits + 0.5 * torch.roll(logits, 1, 1)

    other = Other().train()
    with torch.no_grad():
        keep = other.eval()(images).argmax(1) == labels
    images, labels = images[keep], labels[keep]
    attack = PGD(eps=0.6, step_size=0.2, steps=5)
    found, _ = run(Sweep([attack], 16, network, other, random_of), images, labels, chunk=30)
    attacked = attack.perturb(network, images, labels)
    with torch.no_grad():
        expected = (other.eval()(attacked).argmax(1) == labels).long().tolist()
    assert [found[number] for number in range(len(images))] == expected
    assert 0 < sum(expected) < len(expected)


def test_a_network_under_test_that_answers_no_numbers_gives_no_verdict(
    network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    sweep = Sweep([PGD(eps=0.1, step_size=0.1, steps=1)], 8, network, lambda x: network(x) * float("nan"), random_of)
    with pytest.raises(UserError, match="not a number for 8 of 8 attacked images"):
        sweep.add(range(8), images, labels)


@pytest.mark.parametrize("eps", [[], [0.2, 0.1], [0.1, 0.1]])
def test_eps_must_rise(network: nn.Module, eps: Any) -> None:
    with pytest.raises(UserError, match="each larger than the one before"):
        Sweep([PGD(eps=value, step_size=0.1) for value in eps], 4, network, None, random_of)
