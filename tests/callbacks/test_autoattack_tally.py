"""Counts of two ranks against those of one."""

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from lit_robust.attacks import PGD, AttackResult, AutoAttack, AutoAttackResult, Flags
from lit_robust.callbacks.autoattack_tally import CLEAN, SMALLER_EPS, AutoAttackTally

CPU = torch.device("cpu")
CODES = (torch.tensor([-1, 1, 4, 0, 2]), torch.tensor([1, -1]))
ALONE = SingleDeviceStrategy("cpu")


class OfTwo(SingleDeviceStrategy):
    """The second of two ranks, to which the first has handed its sums."""

    def __init__(self, first: AutoAttackTally) -> None:
        super().__init__("cpu")
        self.first = [first.broken_by, first.flags]

    def reduce(self, tensor, *_args, **_kwargs):
        return tensor + self.first.pop(0)


def result(code: torch.Tensor) -> AutoAttackResult:
    count, flags = len(code), Flags(images=len(code), gained_by_square=int((code == 4).sum()))
    images = torch.zeros(count, 3, 2, 2)
    names = ("clean", *AutoAttack().attacks())
    return AutoAttackResult(images, code >= 0, torch.zeros(count), code, code, names, code, flags)


def tally() -> AutoAttackTally:
    return AutoAttackTally(AutoAttack(), (CLEAN, SMALLER_EPS), CPU)


def test_two_ranks_count_what_one_does():
    whole, ranks = tally(), [tally(), tally()]
    for rank, code, mistakes, before in zip(ranks, CODES, (2, 1), (0, 5), strict=True):
        for each in (whole, rank):
            each.add(result(code))
            each.add_broken(CLEAN, mistakes)
            each.add_broken(SMALLER_EPS, before)
    found = whole.reduced(ALONE)
    assert found == ranks[1].reduced(OfTwo(ranks[0]))
    expected = {"clean": 4, "smaller eps": 5, "apgd-ce": 2, "apgd-t": 1, "fab-t": 0, "square": 1}
    assert found["broken_by"] == expected
    # 7 were attacked, 3 wrong without it, 5 broken at a smaller eps.
    assert (found["flags"]["images"], found["flags"]["unattacked"]) == (15, 8)
    assert ["Square broke 1 of all 15 images" in sentence for sentence in found["warnings"]] == [True]


def test_square_s_share_is_of_all_images():
    few = tally()
    few.add(result(CODES[0]))
    # 1 of 500 is the limit, and not beyond it.
    few.add_broken(CLEAN, 500 - 5)
    assert few.reduced(ALONE)["warnings"] == []


def test_other_attacks_leave_it_empty():
    other = AutoAttackTally(PGD(), (CLEAN,), CPU)
    other.add(AttackResult(torch.zeros(1, 3, 2, 2), torch.ones(1) > 0, torch.zeros(1), torch.ones(1).long()))
    other.add_broken(CLEAN, 3)
    assert other.reduced(ALONE) == {}
