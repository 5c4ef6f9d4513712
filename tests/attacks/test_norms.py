import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lit_robust.attacks.norms import L1, L2, Linf, Norm, draw_normal, draw_uniform
from lit_robust.core.errors import UserError


def offsets(scale: float) -> torch.Tensor:
    return torch.randn(40, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * scale


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 300.0])
@pytest.mark.parametrize("eps", [0.0, 0.05, 1.0, 12.0])
def test_l2_projection_is_the_float64_one(scale: float, eps: float) -> None:
    offset = offsets(scale)
    exact = offset.double().numpy().reshape(40, -1)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    exact = exact * np.minimum(1, eps / norms)
    projected = L2().project(offset, eps).numpy().reshape(40, -1)
    # fp32 keeps 7 digits; the norm of 60 values adds a rounding error or two.
    np.testing.assert_allclose(projected, exact, rtol=1e-6, atol=1e-30)
    inside = norms[:, 0] < eps * (1 - 1e-6)
    np.testing.assert_array_equal(projected[inside], offset.numpy().reshape(40, -1)[inside])


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.05, 1.0, 12.0])
def test_l1_projection_is_the_float64_one(scale: float, eps: float) -> None:
    offset = offsets(scale)
    offset[3] = 0
    offset[4] = torch.tensor([-0.5, 0.5, 0.5, -0.5]) * scale  # Ties.
    exact = offset.double().numpy().reshape(40, -1)
    # The nearest point of an L1 ball shrinks every value by one amount; here that is found by bisection.
    low, high = np.zeros((40, 1)), np.abs(exact).max(1, keepdims=True)
    for _ in range(100):
        middle = (low + high) / 2
        too_long = np.maximum(np.abs(exact) - middle, 0).sum(1, keepdims=True) > eps
        low, high = np.where(too_long, middle, low), np.where(too_long, high, middle)
    outside = np.abs(exact).sum(1) > eps
    expected = np.where(outside[:, None], np.sign(exact) * np.maximum(np.abs(exact) - high, 0), exact)
    projected = L1().project(offset, eps).numpy().reshape(40, -1)
    # A value is the difference of two of the size of the largest, each right to fp32's 7 digits.
    np.testing.assert_allclose(projected, expected, rtol=0, atol=4e-6 * scale)
    np.testing.assert_array_equal(projected[~outside], offset.numpy().reshape(40, -1)[~outside])


@pytest.mark.parametrize("norm", [L1(), L2(), Linf()])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_each_image_has_a_radius_of_its_own(norm: Norm, scale: float) -> None:
    offset = offsets(scale)[:4]
    radii = torch.tensor([0.5, 100.0, 3.0, 0.0]).view(4, 1, 1, 1) * scale
    together = norm.project(offset, radii)
    for image, radius, projected in zip(offset, radii.flatten().tolist(), together, strict=True):
        torch.testing.assert_close(norm.project(image[None], radius)[0], projected, rtol=0, atol=1e-6 * scale)


def test_l1_steps_along_the_largest_hundredth_that_can_move() -> None:
    gradient = torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    images = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(1)).mul(3).sub(1).clamp(0, 1)
    found = L1().ascent(gradient, images)
    for one, image, step in zip(gradient, images, found, strict=True):
        free = one.numpy() * ~((image == 0) & (one < 0) | (image == 1) & (one > 0)).numpy()
        largest = np.abs(free) >= np.quantile(np.abs(free), 0.99)
        assert largest.sum() == 12
        np.testing.assert_allclose(step.numpy(), np.sign(free) * largest / 12, rtol=1e-6)


def test_linf_projection_is_numpy_clip() -> None:
    offset = offsets(1.0)
    np.testing.assert_array_equal(Linf().project(offset, 0.25).numpy(), np.clip(offset.numpy(), -0.25, 0.25))


@pytest.mark.parametrize("norm", [L1(), L2(), Linf()])
def test_projection_of_zero_offset_onto_empty_ball_is_zero(norm: Norm) -> None:
    assert torch.equal(norm.project(torch.zeros(2, 3, 2, 2), 0.0), torch.zeros(2, 3, 2, 2))


def test_normalised_gradients_have_length_one_and_zero_stays_zero() -> None:
    gradient = offsets(3.0)
    gradient[7] = 0
    for norm in (L1(), L2(), Linf()):
        lengths = norm.length(norm.normalise(gradient)).flatten()
        expected = torch.ones(40)
        expected[7] = 0
        torch.testing.assert_close(lengths, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-7, 1e-10, 1e-20, 1e-30])
def test_a_step_up_a_faint_gradient_is_whole_too(size: float) -> None:
    gradient = offsets(size)
    for norm in (L1(), L2(), Linf()):
        torch.testing.assert_close(norm.normalise(gradient), norm.normalise(offsets(1.0)), rtol=2e-4, atol=1e-7)


def test_of_usual_gradients_l2_is_madrylab_s_to_the_last_digit() -> None:
    gradient = offsets(1e-3)
    assert torch.equal(L2().normalise(gradient), gradient / (L2().length(gradient) + 1e-10))


@pytest.mark.parametrize("norm", [L1(), L2(), Linf()])
def test_channels_last_changes_nothing(norm: Norm) -> None:
    offset = offsets(1.0)
    last = offset.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    # The order of a sum may differ, so one part in 1e6.
    torch.testing.assert_close(norm.length(last), norm.length(offset), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.project(last, 0.3), norm.project(offset, 0.3), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.normalise(last), norm.normalise(offset), rtol=1e-6, atol=0)


def kolmogorov_distance(sample: torch.Tensor) -> float:
    """Largest gap between the empirical distribution of ``sample`` and the uniform one on [0, 1]."""
    ordered = sample.double().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float(torch.maximum((ordered - steps[:-1]).abs(), (ordered - steps[1:]).abs()).max())


# A true uniform sample of n passes 1.95 / sqrt(n) once in a thousand times; the seeds are fixed.
COUNT = 4000
LIMIT = 1.95 / math.sqrt(COUNT)


def test_sphere_has_exact_norm_and_uniform_directions() -> None:
    images = torch.zeros(COUNT, 3, 1, 1)
    offset = L2().sphere(images, 2.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(offset.flatten(1).norm(dim=1), torch.full((COUNT,), 2.5), rtol=1e-6, atol=0)
    # Archimedes: each coordinate of a uniform point on the sphere in three dimensions is itself uniform.
    for coordinate in (offset.flatten(1) / 2.5).T:
        assert kolmogorov_distance((coordinate + 1) / 2) < LIMIT


@pytest.mark.parametrize("side", [1, 2])
def test_l2_ball_is_uniform_in_volume(side: int) -> None:
    images = torch.zeros(COUNT, 3, side, side)
    offset = L2().ball(images, 0.7, torch.Generator().manual_seed(1))
    radius = offset.flatten(1).norm(dim=1) / 0.7
    assert radius.max() <= 1 + 1e-6
    assert kolmogorov_distance(radius ** (3 * side * side)) < LIMIT
    # The test can tell: a uniform radius, as in torchattacks, is far from it.
    assert kolmogorov_distance(torch.rand(COUNT) ** (3 * side * side)) > 5 * LIMIT


@pytest.mark.parametrize("side", [1, 2])
def test_l1_ball_is_uniform_in_volume(side: int) -> None:
    offset = L1().ball(torch.zeros(COUNT, 3, side, side), 0.7, torch.Generator().manual_seed(1)).flatten(1) / 0.7
    dimension = 3 * side * side
    assert offset.abs().sum(1).max() <= 1 + 1e-6
    # The volume within a radius grows with its power; what a coordinate leaves is a ball of one dimension less.
    assert kolmogorov_distance(offset.abs().sum(1) ** dimension) < LIMIT
    for value in offset.T:
        assert kolmogorov_distance(1 - (1 - value.abs()) ** dimension) < LIMIT
        assert abs((value > 0).float().mean() - 0.5) < LIMIT


def test_linf_ball_is_uniform_in_each_value() -> None:
    offset = Linf().ball(torch.zeros(COUNT, 1, 1, 2), 0.1, torch.Generator().manual_seed(2))
    for value in offset.flatten(1).T:
        assert kolmogorov_distance((value / 0.1 + 1) / 2) < LIMIT


def test_diameter_is_black_to_white() -> None:
    white = torch.ones(1, 3, 6, 5)
    for norm in (L1(), L2(), Linf()):
        assert norm.diameter(white.shape[1:]) == pytest.approx(norm.length(white).item(), rel=1e-6)


def test_a_linf_start_reaches_the_wall_and_is_uniform_up_to_it() -> None:
    values = Linf().ball(torch.zeros(1, 3, 200, 200), 0.1, torch.Generator().manual_seed(0)).flatten()
    # Of 120,000 values the largest lies within 1e-4 of the wall with a probability of 1 - exp(-6) on each side.
    assert 0.1 * (1 - 1e-4) < values.max() < 0.1
    assert -0.1 <= values.min() < -0.1 * (1 - 1e-4)
    # A quantile of a uniform sample deviates by 0.1 * sqrt(q (1 - q) / 120,000): five of these are allowed.
    shares = torch.linspace(0.1, 0.9, 9)
    torch.testing.assert_close(values.quantile(shares), 0.2 * shares - 0.1, rtol=0, atol=1.5e-3)


def test_l1_keeps_in_its_ball_an_image_of_150_528_values() -> None:
    # Nearly equal values, of which a sum in fp32 is off by more than the shrunk values are rounded by.
    offset = 0.3 + 1e-3 * torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    length = L1().project(offset, 12.0).double().abs().sum((1, 2, 3))
    # 150,528 values near 0.3 are rounded to multiples of 3e-8, by half of it at most, alike where they are equal.
    torch.testing.assert_close(length, torch.full((4,), 12.0, dtype=torch.float64), rtol=7e-5, atol=0)


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
