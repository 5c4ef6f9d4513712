from collections.abc import Callable

import pytest
import torch

from lit_robust.attacks.draws import draw_normal, draw_uniform
from lit_robust.core.errors import UserError

CPU = torch.device("cpu")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("draw", [draw_normal, draw_uniform])
def test_a_sample_with_its_own_generator_ignores_the_others(draw: Callable[..., torch.Tensor]) -> None:
    together = draw((3, 4, 2), generators(10, 11, 12), CPU)
    alone = draw((1, 4, 2), generators(11), CPU)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_one_generator_serves_the_batch_and_moves_on() -> None:
    source = torch.Generator().manual_seed(5)
    first, second = draw_normal((2, 3), source, CPU), draw_normal((2, 3), source, CPU)
    assert torch.equal(first, torch.randn(2, 3, generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(first, second)


def test_an_empty_batch_draws_nothing() -> None:
    assert draw_uniform((0, 3), [], CPU).shape == (0, 3)


def test_a_wrong_number_of_generators_is_refused() -> None:
    with pytest.raises(UserError, match="2 generators for 3 images"):
        draw_normal((3, 4), generators(1, 2), CPU)
