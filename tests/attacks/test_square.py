"""Square: its schedule and moves worked out, and its strength against torchattacks."""

from typing import Literal

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lit_robust.attacks.norms import L2
from lit_robust.attacks.square import MOVES, Square, bump, two_bumps
from lit_robust.core.errors import UserError

NormName = Literal["l2", "linf"]
NORMS: list[NormName] = ["l2", "linf"]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("scaled", [False, True])
def test_squares_shrink_when_torchattacks_squares_shrink(network: nn.Module, scaled: bool) -> None:
    peer = torchattacks.Square(network, n_queries=5000, p_init=0.8, resc_schedule=scaled)
    ours = Square(schedule="scaled" if scaled else "fixed")
    assert [ours._share(query) for query in range(5000)] == [peer.p_selection(query) for query in range(5000)]


@pytest.mark.parametrize(("height", "width"), [(1, 3), (3, 7), (4, 9), (6, 6)])
def test_a_bump_is_nested_rectangles(network: nn.Module, height: int, width: int) -> None:
    peer = torchattacks.Square(network, norm="L2")
    peer.device = torch.device("cpu")
    torch.testing.assert_close(bump(height, width), peer.eta_rectangles(height, width))


@pytest.mark.parametrize("side", [1, 2, 3, 7, 12])
def test_two_bumps_are_of_length_1_and_opposite(side: int) -> None:
    pair = two_bumps(side, torch.device("cpu"))
    assert pair.shape == (side, side)
    assert pair.norm().item() == pytest.approx(1)
    assert (pair[: side // 2] > 0).all()
    assert (pair[side // 2 :] < 0).all()


def test_linf_moves_set_one_square_to_the_ball_s_wall() -> None:
    moves, clean = MOVES["linf"], 0.2 + 0.6 * numbers(500, 3, 9, 7)
    start = moves.start(clean, 0.1, numbers(500, *moves.start_shape((3, 9, 7))))
    torch.testing.assert_close((start - clean).abs(), torch.full_like(clean, 0.1))
    assert torch.equal((start > clean)[:, :, :1].expand_as(clean), start > clean), "stripes are vertical"
    tried = moves.propose(clean, clean, 0.1, 3, numbers(500, moves.numbers(3)))
    changed = (tried != clean).any(1)
    assert (changed.sum((1, 2)) == 9).all()
    torch.testing.assert_close((tried - clean).abs().amax((1, 2, 3)), torch.full((500,), 0.1))
    # Each of the 7 by 5 places is as likely: 14.3 times, in 500 never once is 1 in 10 million.
    first = changed.flatten(1).int().argmax(1)
    assert set(first.tolist()) == {row * 7 + column for row in range(7) for column in range(5)}


def test_l2_moves_put_what_two_windows_hold_into_one() -> None:
    moves, clean = MOVES["l2"], torch.full((200, 3, 16, 16), 0.5)
    start = moves.start(clean, 1.0, numbers(200, *moves.start_shape((3, 16, 16))))
    torch.testing.assert_close(L2().length(start - clean), torch.ones(200, 1, 1, 1))
    tiles = (start - clean)[:, :, :15, :15].unflatten(3, (5, 3)).unflatten(2, (5, 3))
    lengths = (tiles**2).sum((3, 5)).sqrt()
    torch.testing.assert_close(lengths, torch.full_like(lengths, 75**-0.5))
    tried = moves.propose(clean, start, 1.0, 5, numbers(200, moves.numbers(3)))
    torch.testing.assert_close(L2().length(tried - clean), torch.ones(200, 1, 1, 1))
    changed = ((tried - start).abs() > 1e-6).any(1)
    assert (changed.sum((1, 2)) <= 50).all()
    emptied = changed & (tried == 0.5).all(1)
    assert (emptied.sum((1, 2)) > 0).sum() > 150
    # No channel's length changes where both windows' lengths are kept, and nothing is spare.
    each = ((start - clean) ** 2).sum((2, 3))
    torch.testing.assert_close(((tried - clean) ** 2).sum((2, 3)), each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 9), (3, 12, 12), (1, 28, 28)])
@pytest.mark.parametrize("norm", NORMS)
def test_any_shape_of_image_will_do(norm: NormName, shape: tuple[int, int, int]) -> None:
    weight = torch.randn(4, shape[0] * shape[1] * shape[2], generator=torch.Generator().manual_seed(0))
    images = numbers(5, *shape)
    labels = (images.flatten(1) @ weight.T).argmax(1)
    eps = {"l2": 0.24, "linf": 0.02}[norm]
    attack = Square(norm, eps, 120)
    result = attack(lambda images: images.flatten(1) @ weight.T, images, labels, generator=generators(5))
    offset = (result.images - images).flatten(1).double()
    assert (offset.norm(dim=1) if norm == "l2" else offset.abs().amax(1)).max() <= eps * (1 + 1e-6) + 6e-8
    assert (offset.norm(dim=1) > 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_s_result_depends_neither_on_its_batch_nor_on_who_survives(
    network: nn.Module, images: Tensor, labels: Tensor, norm: NormName
) -> None:
    labels[0] = (labels[0] + 1) % 10
    attack = Square(norm, {"l2": 0.3, "linf": 0.02}[norm], 150)
    with torch.inference_mode():
        together = attack(network, images, labels, generator=generators(8))
    assert 2 <= int(together.success.sum()) < 8
    for index, source in enumerate(generators(8)):
        alone = attack(network, images[index, None], labels[index, None], generator=[source])
        torch.testing.assert_close(alone.images[0], together.images[index], rtol=0, atol=1e-6)
        assert alone.success[0] == together.success[index]
        assert alone.queries[0] == together.queries[index]
    assert together.queries[0] == 0
    assert (together.queries[~together.success] == 151).all()
    assert together.steps.sum() == 0
    with torch.no_grad():
        assert torch.equal(together.success, network(together.images).argmax(1) != labels)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.0214), ("l2", 0.5)])
def test_it_is_no_weaker_than_torchattacks(network: nn.Module, norm: NormName, eps: float) -> None:
    # Not of 12 pixels, where torchattacks' first bumps do not fit.
    images = torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        labels = network(images).argmax(1)
    result = Square(norm, eps, 300)(network, images, labels, generator=torch.Generator().manual_seed(0))
    peer = torchattacks.Square(
        network, {"l2": "L2", "linf": "Linf"}[norm], eps, n_queries=300, n_restarts=1, resc_schedule=False
    )
    theirs = peer(images, labels)
    with torch.no_grad():
        broken = network(theirs).argmax(1) != labels
    # A random search of few queries: seeds alone move either by 2 or 3 of 48.
    assert int(result.success.sum()) >= int(broken.sum()) - 4
    assert 8 < int(broken.sum()) < 40


def test_wrong_settings_are_refused_in_a_sentence(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match="Square eps is 8 in linf, .* did you mean 8/255"):
        Square(eps=8)
    with pytest.raises(UserError, match="Square p_init is 0: give a share above 0"):
        Square(p_init=0)
    with pytest.raises(UserError, match="Square queries is 0: give 1 or more"):
        Square(queries=0)
    with pytest.raises(UserError, match="Square schedule is 'none': choose one of fixed, scaled"):
        Square(schedule="none")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Square needs random numbers"):
        Square()(network, images, labels)
