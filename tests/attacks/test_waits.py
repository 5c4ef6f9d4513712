"""How often searches ask the device which images to go on with: at each such read it runs dry."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_robust.attacks import APGD, FAB, PGD

INDEXINGS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Reads(TorchDispatchMode):
    """Counts the operations whose result has a size that the device decides, a mask as an index among them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [one for one in args[1] if one is not None and one.dtype == torch.bool] if func in INDEXINGS else []
        self.count += (func is torch.ops.aten.nonzero.default) + len(masks)
        return func(*args, **(kwargs or {}))


def reads(attack: PGD | APGD | FAB, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return how often a call reads, and how many images broke."""
    generators = [torch.Generator().manual_seed(number) for number in range(len(images))]
    with Reads() as seen:
        result = attack(network, images, labels, generator=generators)
    return seen.count, int(result.success.sum())


@pytest.mark.parametrize(
    "attack",
    [PGD(eps=1e-4, step_size=1e-5, steps=9, keep="first"), APGD(eps=1e-5, steps=9), FAB(eps=1e-5, steps=9, targets=1)],
)
def test_a_step_at_which_no_image_leaves_reads_once(
    attack: PGD | APGD | FAB, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    few, broken = reads(attack, network, images, labels)
    more, _ = reads(replace(attack, steps=19), network, images, labels)
    assert (more - few, broken) == (10, 0)


@pytest.mark.parametrize(
    "attack",
    [PGD(eps=1.0, step_size=0.1, steps=9, keep="first"), APGD(eps=0.1, steps=9), FAB(eps=0.1, steps=9, targets=1)],
)
def test_a_step_at_which_images_leave_reads_twice(
    attack: PGD | APGD | FAB, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    count, broken = reads(attack, network, images, labels)
    assert broken >= 4
    # And once or twice outside the steps.
    assert count <= 2 * 9 + 2
