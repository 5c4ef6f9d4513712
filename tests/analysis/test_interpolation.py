"""Paths between images: they begin and end at the images, and lie on the line in the representation."""

import pytest
import torch
from linear import Judge, linear, pictures

from lit_robust.analysis.ascent import Settings
from lit_robust.analysis.interpolation import Interpolations, interpolate, path_measures
from lit_robust.core.errors import UserError

FINE = Settings(step_size=1e-3, steps=100)


def test_a_path_of_a_linear_representation_is_the_line_of_pixels():
    represent, _ = linear()
    first, second = pictures(2, 0), pictures(2, 1)
    paths = interpolate(represent, first, second, 5, FINE)
    assert paths.images.shape == (2, 5, 3, 4, 4)
    # Every search starts at loss 0 up to rounding, and moves by no more than a step.
    assert float(paths.before.max()) < 1e-5
    torch.testing.assert_close(paths.images, paths.pixels, rtol=0, atol=2e-3)
    torch.testing.assert_close(paths.pixels[:, 0], first, rtol=0, atol=0)
    torch.testing.assert_close(paths.pixels[:, -1], second, rtol=0, atol=1e-7)
    torch.testing.assert_close(paths.pixels[:, 1], 0.75 * first + 0.25 * second)


def test_measures_of_paths_made_by_hand():
    parts = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1)
    line = (0.05 + 0.9 * parts).expand(1, 5, 3, 4, 4)
    back = line.clone()
    back[:, 2] = 0.05
    paths = Interpolations(torch.cat([line, back]), torch.cat([line, line]), torch.ones(2, 5), torch.zeros(2, 5))
    labels = torch.tensor([[0, 2], [0, 2]])
    found = {one.measure: one.estimate.value for one in path_measures(paths, Judge(3), labels, 4)}
    assert found["monotone_path"] == 0.5
    assert found["monotone_path_of_pixel_mean"] == 1
    # Of the three points between the ends, .275 and .725 are nearer to .5, and the middle is .5 itself.
    assert found["either_class_of_pixel_mean"] == 0
    assert found["either_class"] == pytest.approx(1 / 6)
    assert found["representation_distance"] == 0
    assert found["representation_distance_of_pixel_mean"] == 1


def test_mistakes():
    represent, _ = linear()
    with pytest.raises(UserError, match="points is 1"):
        interpolate(represent, pictures(2, 0), pictures(2, 1), 1, FINE)
    with pytest.raises(UserError, match="are not pairs"):
        interpolate(represent, pictures(2, 0), pictures(3, 1), 3, FINE)
