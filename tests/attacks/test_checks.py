"""Radii of the wrong scale, at the image sizes that networks take."""

import pytest
import torch

from lit_robust.attacks.checks import check_reach
from lit_robust.core.errors import UserError


# MadryLab/robustness' largest of ImageNet and of CIFAR-10, and half a range on the scale to 255.
@pytest.mark.parametrize(("side", "usual", "wrong"), [(224, 10.0, 127.5), (64, 5.0, 127.5), (32, 1.0, 63.75)])
def test_published_radii_pass_and_those_on_the_scale_to_255_do_not(side: int, usual: float, wrong: float) -> None:
    images = torch.empty(1, 3, side, side)
    check_reach(usual, "l2", images)
    with pytest.raises(UserError, match=rf"L2 eps {wrong:g} is beyond .*, where you may mean {wrong:g}/255 = 0\.\d+"):
        check_reach(wrong, "l2", images)
    # A quarter of the distance of black and white.
    limit = float((torch.ones(3, side, side)).norm()) / 4
    check_reach(limit * 0.999, "l2", images)
    with pytest.raises(UserError, match="a quarter of the largest distance"):
        check_reach(limit * 1.001, "l2", images)


def test_l1_radii_likewise() -> None:
    images = torch.empty(1, 3, 32, 32)
    check_reach(12.0, "l1", images)  # Croce and Hein 2021's of CIFAR-10.
    with pytest.raises(UserError, match=r"L1 eps 3060 is beyond 768, a quarter .* you may mean 3060/255 = 12\."):
        check_reach(12.0 * 255, "l1", images)
