"""Counts of two ranks against those of one."""

from dataclasses import asdict

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from lit_robust.attacks import PGD, AttackResult, AutoAttack, AutoAttackResult, Flags
from lit_robust.callbacks.adversarial import CLEAN, SMALLER_EPS, AttackTally

CPU = torch.device("cpu")
CODES = (torch.tensor([-1, 1, 4, 0, 2]), torch.tensor([1, -1]))
ALONE = SingleDeviceStrategy("cpu")


class OfTwo(SingleDeviceStrategy):
    """The second of two ranks, to which the first has handed its sums."""

    def __init__(self, first: AttackTally) -> None:
        super().__init__("cpu")
        self.first = [first.broken_by, first.flags]

    def reduce(self, tensor, *_args, **_kwargs):
        return tensor + self.first.pop(0)


def result(code: torch.Tensor) -> AutoAttackResult:
    count = len(code)
    images, zero = torch.zeros(count, 3, 2, 2), torch.zeros_like(code)
    names = ("clean", *AutoAttack().attacks())
    return AutoAttackResult(images, code >= 0, zero.float(), code, zero, zero > 0, code, names, code, randomised=0)


def tally() -> AttackTally:
    return AttackTally(AutoAttack(), (CLEAN, SMALLER_EPS), CPU)


def test_two_ranks_count_what_one_does():
    whole, ranks = tally(), [tally(), tally()]
    for rank, code, mistakes, before in zip(ranks, CODES, (2, 1), (0, 5), strict=True):
        for each in (whole, rank):
            each.add(result(code))
            each.add_broken(CLEAN, mistakes)
            each.add_broken(SMALLER_EPS, before)
    found, warnings = whole.reduced(ALONE)
    assert (found, warnings) == ranks[1].reduced(OfTwo(ranks[0]))
    expected = {"clean": 4, "smaller eps": 5, "apgd-ce": 2, "apgd-t": 1, "fab-t": 0, "square": 1}
    assert found["broken_by"] == expected
    # 7 were attacked, 3 wrong without it, 5 broken at a smaller eps.
    assert (found["flags"]["images"], found["flags"]["unattacked"]) == (15, 8)
    assert ["Square broke 1 of all 15 images" in sentence for sentence in warnings] == [True]


def test_square_s_share_is_of_all_images():
    few = tally()
    few.add(result(CODES[0]))
    # 1 of 500 is the limit, and not beyond it.
    few.add_broken(CLEAN, 500 - 5)
    assert few.reduced(ALONE)[1] == []


def test_of_other_attacks_it_counts_the_signs_alone():
    other = AttackTally(PGD(), (CLEAN,), CPU)
    steps, vanished, success = torch.tensor([7, 7, 7, 7]), torch.tensor([0, 2, 7, 7]), torch.tensor([1, 0, 0, 1]) > 0
    other.add(AttackResult(torch.zeros(4, 3, 2, 2), success, torch.zeros(4), steps, vanished, success))
    other.add_broken(CLEAN, 3)
    found, warnings = other.reduced(ALONE)
    assert found == {"flags": asdict(Flags(images=7, probabilities=2, zero_gradient=3, unmoved=1, unattacked=3))}
    assert ["for 3 of 4 images, of which 1 withstood and never moved" in one for one in warnings] == [True]
