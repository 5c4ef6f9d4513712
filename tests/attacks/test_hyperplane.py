"""The projection against solvers of scipy: a linear programme in Linf, bisection on its multiplier in L2."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog
from torch import Tensor

from lit_robust.attacks.hyperplane import move_to_hyperplane
from lit_robust.attacks.norms import L2, Linf, Norm

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
