"""Sizes of perturbations."""

import pytest
import torch

from lit_robust.analysis.perturbation import misaligned, normalised_size
from lit_robust.core.errors import UserError


def test_the_size_is_the_largest_change_over_the_largest_value():
    clean = torch.full((2, 3, 4, 4), 0.25)
    clean[0, 1, 2, 3] = 0.8
    other = clean.clone()
    other[0, 0, 0, 0] -= 0.2
    other[1, 2, 1, 1] += 0.5
    assert normalised_size(other, clean).tolist() == pytest.approx([0.25, 2.0])
    with pytest.raises(UserError, match="set resize and crop"):
        normalised_size(other[:, :, :2], clean)


def test_misaligned_images_are_enlarged_about_their_centre():
    rows = torch.arange(224, dtype=torch.uint8)[None, :, None].expand(3, 224, 224).contiguous()
    found = misaligned(rows, 256).float()
    assert found.shape == (3, 224, 224)
    # Row r shows what was at (r + 16.5) * 224 / 256 - 0.5.
    expected = (torch.arange(224) + 16.5) * 224 / 256 - 0.5
    torch.testing.assert_close(found[0, :, 0], expected, rtol=0, atol=1.0)
