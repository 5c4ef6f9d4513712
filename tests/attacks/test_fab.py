"""FAB where the nearest mistake is known exactly, and against torchattacks."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pytest
import torch
import torchattacks
from scipy.optimize import brentq, linprog
from torch import Tensor, nn

from lit_robust.attacks.fab import FAB, move_to_hyperplane
from lit_robust.attacks.norms import L2, Linf, Norm
from lit_robust.core.errors import UserError

NormName = Literal["l2", "linf"]
NORMS: list[NormName] = ["l2", "linf"]


def linear_case(classes: int, norm: str) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """A linear network, images well inside [0, 1], labels and the exact distances of the nearest mistakes."""
    generator = torch.Generator().manual_seed(classes)
    weight, bias = torch.randn(classes, 27, generator=generator) * 0.3, torch.randn(classes, generator=generator) * 0.05
    images = 0.35 + 0.3 * torch.rand(60, 3, 3, 3, generator=generator)

    def network(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight.T + bias

    logits = network(images)
    labels = logits.argmax(1)
    slopes = (weight[None] - weight[labels][:, None]).double()
    # A linear function that changes by at most the dual norm of its slope times the distance.
    dual = slopes.norm(dim=2) if norm == "l2" else slopes.abs().sum(2)
    distances = (logits.gather(1, labels[:, None]) - logits).double() / dual
    return network, images, labels, distances.scatter(1, labels[:, None], torch.inf).amin(1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_s_nearest_mistakes_are_found(norm: NormName, classes: int) -> None:
    network, images, labels, exact = linear_case(classes, norm)
    found = FAB(norm=norm, steps=30).nearest(network, images, labels)
    # The halving of the last overshoot, 5%, ends 12 times finer.
    torch.testing.assert_close(found.distance.double(), exact, rtol=1e-3, atol=0)
    offset = (found.images - images).flatten(1)
    there = offset.norm(dim=1) if norm == "l2" else offset.abs().amax(1)
    torch.testing.assert_close(there, found.distance)
    assert (network(found.images).argmax(1) != labels).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_breaks_where_the_nearest_mistake_is_within_eps(norm: NormName) -> None:
    network, images, labels, exact = linear_case(3, norm)
    eps = float(exact.median())
    result = FAB(norm=norm, eps=eps, steps=50)(network, images, labels)
    # It stops wherever it is 1% above the nearest or less: between 0.99 and 1 eps anything goes.
    clear = ((exact / eps - 0.995).abs() > 0.005).nonzero()[:, 0]
    assert torch.equal(result.success[clear], exact[clear] < eps)
    assert len(clear) >= 50
    offset = (result.images - images).flatten(1)
    assert (offset.norm(dim=1) if norm == "l2" else offset.abs().amax(1)).max() <= eps
    assert torch.equal(result.success, network(result.images).argmax(1) != labels)
    assert torch.equal(result.images[~result.success], images[~result.success])
    # Two targets to the end, or the steps to the first success.
    assert (result.steps[~result.success] == 100).all()
    assert (result.steps[result.success] < 100).all()


def test_what_is_misclassified_clean_is_at_distance_0() -> None:
    network, images, labels, exact = linear_case(3, "l2")
    wrong = (labels + 1) % 3
    labels = torch.where(torch.arange(60) < 5, wrong, labels)
    found = FAB(norm="l2", steps=5).nearest(network, images, labels)
    assert found.distance[:5].tolist() == [0] * 5
    assert torch.equal(found.images[:5], images[:5])
    assert (found.distance[5:] > 0.9 * exact[5:]).all()
    result = FAB(norm="l2", steps=5)(network, images, labels)
    assert result.success[:5].all()
    assert result.steps[:5].tolist() == [0] * 5


def test_an_unreachable_class_is_infinitely_far() -> None:
    def network(images: Tensor) -> Tensor:
        return torch.stack([images.sum((1, 2, 3)) + 1, 0 * images.sum((1, 2, 3))], 1)

    found = FAB(norm="l2", steps=5).nearest(network, torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
    assert found.distance.tolist() == [torch.inf] * 3


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.0105), ("l2", 0.15)])
def test_it_breaks_what_torchattacks_breaks(network: nn.Module, norm: NormName, eps: float) -> None:
    images = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        labels = network(images).argmax(1)
    ours = FAB(norm=norm, eps=eps, steps=20, targets=3)(network, images, labels)
    peer = torchattacks.FAB(
        network, {"l2": "L2", "linf": "Linf"}[norm], eps, steps=20, n_restarts=1, n_classes=4, multi_targeted=True
    )
    theirs = peer(images, labels)
    with torch.no_grad():
        broken = network(theirs).argmax(1) != labels
    # Both draw no random number; only rounding tells them apart, which moves an image that just reaches eps.
    assert (broken & ~ours.success).sum() <= 1
    assert (broken != ours.success).sum() <= 1
    assert 5 < int(broken.sum()) < 20


def test_wrong_settings_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="FAB eps is 8 in linf, .* did you mean 8/255"):
        FAB(eps=8)
    with pytest.raises(UserError, match="FAB beta is 1: give a share between 0 and 1, such as 0.9"):
        FAB(beta=1)
    for eta in (0.9, 2.0):
        with pytest.raises(UserError, match=f"FAB eta is {eta}: give a factor from 1 to below 2"):
            FAB(eta=eta)
    with pytest.raises(UserError, match="FAB alpha_max is 2"):
        FAB(alpha_max=2)
    with pytest.raises(UserError, match="FAB norm is 'l1': choose one of l2, linf"):
        FAB(norm="l1")  # type: ignore[arg-type]


SHAPE = (3, 4, 5)


def cases() -> tuple[Tensor, Tensor, Tensor]:
    """Points, many on the box's walls; normals, some zero and some tiny; gaps from nothing to nearly all there is."""
    generator = torch.Generator().manual_seed(0)
    points = (1.6 * torch.rand(60, *SHAPE, generator=generator) - 0.3).clamp(0, 1)
    normals = torch.randn(60, *SHAPE, generator=generator)
    normals *= torch.rand(60, *SHAPE, generator=generator) > 0.2
    normals *= 10 ** (6 * torch.rand(60, 1, 1, 1, generator=generator) - 5)
    up = (normals.clamp_min(0) * (1 - points) - normals.clamp_max(0) * points).sum((1, 2, 3))
    down = (normals.clamp_min(0) * points - normals.clamp_max(0) * (1 - points)).sum((1, 2, 3))
    share = torch.rand(60, generator=generator) * 0.98
    return points, normals, torch.where(torch.arange(60) % 2 == 0, share * up, -share * down)


def solved(norm: Norm) -> Iterator[tuple[Tensor, ...]]:
    """Each case and its move, in float64."""
    problem = cases()
    yield from zip(*(part.double() for part in (*problem, move_to_hyperplane(*problem, norm))), strict=True)


def test_linf_moves_are_as_short_as_the_linear_programme_s() -> None:
    points, normals, gap = cases()
    moves = move_to_hyperplane(points, normals, gap, Linf())
    for point, normal, target, move in zip(
        points.double(), normals.double(), gap.double(), moves.double(), strict=True
    ):
        start, slope = point.flatten().numpy(), normal.flatten().numpy()
        count, scale = len(start), np.abs(slope).max()
        # Variables: the move, and its length that is made small.
        equal = np.concatenate([slope / scale, [0]])[None]
        within = np.block([[np.eye(count), -np.ones((count, 1))], [-np.eye(count), -np.ones((count, 1))]])
        bounds = [*zip(-start, 1 - start, strict=True), (0, 1)]
        exact = linprog([0] * count + [1], within, np.zeros(2 * count), equal, [float(target) / scale], bounds)
        # HiGHS solves to 1e-7, the moves are float32.
        assert move.abs().max().item() == pytest.approx(exact.fun, abs=2e-6)
        assert float((normal * move).sum()) == pytest.approx(float(target), rel=1e-5, abs=1e-6 * scale)


def test_l2_moves_are_the_quadratic_programme_s() -> None:
    points, normals, gap = cases()
    moves = move_to_hyperplane(points, normals, gap, L2())
    for point, normal, target, move in zip(
        points.double(), normals.double(), gap.double(), moves.double(), strict=True
    ):
        start, slope = point.flatten().numpy(), normal.flatten().numpy() / normal.abs().max().item()
        wanted = float(target / normal.abs().max())

        # Stationary points of the Lagrangian move by a multiple of the normal, cut at the walls.
        def way(multiplier: float, start: np.ndarray = start, slope: np.ndarray = slope) -> np.ndarray:
            return np.clip(start + multiplier * slope, 0, 1) - start

        multiplier = brentq(
            lambda m, slope=slope, wanted=wanted, way=way: slope @ way(m) - wanted, -1e6, 1e6, xtol=1e-12
        )
        # Near the end only pixels of small normals still move, and a float32 gap leaves their place open to 1e-4.
        np.testing.assert_allclose(move.flatten().numpy(), way(multiplier), atol=1e-4)
        assert float(slope @ move.flatten().numpy()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("norm", [L2(), Linf()])
def test_moves_stay_in_the_box_and_leave_pixels_without_a_normal(norm: L2 | Linf) -> None:
    points, normals, gap = cases()
    moves = move_to_hyperplane(points, normals, gap, norm)
    # A wall is 1 - point away, which rounds to 6e-8.
    assert (points + moves).min() >= -1e-7
    assert (points + moves).max() <= 1 + 1e-7
    assert moves[normals == 0].abs().max() == 0


@pytest.mark.parametrize("norm", [L2(), Linf()])
def test_a_hyperplane_beyond_the_box_draws_to_the_nearest_corner(norm: L2 | Linf) -> None:
    points, normals, gap = cases()
    moves = move_to_hyperplane(points, normals, gap * 1000, norm)
    upwards = (normals > 0) == (gap > 0).view(-1, 1, 1, 1)
    corner = torch.where(normals == 0, points, upwards.float())
    torch.testing.assert_close(points + moves, corner, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", [L2(), Linf()])
def test_without_a_normal_or_a_gap_nothing_moves(norm: L2 | Linf) -> None:
    points, normals, gap = cases()
    assert move_to_hyperplane(points, torch.zeros_like(points), gap, norm).abs().max() == 0
    assert move_to_hyperplane(points, normals, torch.zeros_like(gap), norm).abs().max() == 0


def test_memory_format_and_kinks_in_series_change_nothing() -> None:
    points, normals, gap = cases()
    plain = move_to_hyperplane(points, normals, gap, L2())
    last = torch.channels_last
    other = move_to_hyperplane(points.contiguous(memory_format=last), normals.contiguous(memory_format=last), gap, L2())
    # Sums run in another order.
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)
    # Every pixel ten times slower than the last and only the slowest free in the end: a kink for each.
    slopes = 10.0 ** -torch.arange(6).view(1, 1, 1, 6)
    move = move_to_hyperplane(torch.zeros(1, 1, 1, 6), slopes, 0.999999 * slopes.sum().view(1), Linf())
    assert float((slopes * move).sum()) == pytest.approx(0.999999 * float(slopes.sum()), rel=1e-6)
