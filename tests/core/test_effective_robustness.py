import math

import numpy as np
import pytest
from scipy.stats import linregress

from lit_robust.core.effective_robustness import Line, effective_robustness, fit_line
from lit_robust.core.errors import UserError
from lit_robust.reference import imagenet_subset, imagenet_wnids, standard_networks

SETS = ["objectnet", "imagenet-r", "imagenet-sketch", "imagenet-v2-matched-frequency"]


def logit(value):
    return math.log(value / (1 - value))


@pytest.mark.parametrize("name", SETS)
def test_the_line_is_scipys_on_the_published_networks(name):
    _, clean, shifted = zip(*standard_networks(name), strict=True)
    assert len(clean) > 60
    line = fit_line(clean, shifted)
    expected = linregress([logit(value) for value in clean], [logit(value) for value in shifted])
    assert (line.slope, line.intercept) == pytest.approx((expected.slope, expected.intercept), abs=1e-9)
    left = [logit(y) - line.intercept - line.slope * logit(x) for x, y in zip(clean, shifted, strict=True)]
    assert line.deviation == pytest.approx(math.sqrt(sum(one**2 for one in left) / (len(left) - 2)))
    # Points of the line are not robust beyond it.
    assert effective_robustness(0.7, line.expected(0.7), line) == 0
    assert effective_robustness(0.7, line.expected(0.7) + 0.05, line) == pytest.approx(0.05)


def test_imagenet_v2_lies_below_imagenet_by_the_published_gap():
    """Recht et al. 2019: accuracies fall by 11 to 14 points on the matched-frequency set."""
    gaps = [clean - shifted for _, clean, shifted in standard_networks("imagenet-v2-matched-frequency")]
    assert 0.09 < min(gaps) < 0.11 < sum(gaps) / len(gaps) < 0.14


def test_what_has_no_logit_and_too_few_networks_are_refused():
    with pytest.raises(UserError, match="An accuracy is 1: give fractions between 0 and 1"):
        fit_line([0.5, 0.6, 1.0], [0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="An accuracy is of the type ndarray: give one number"):
        effective_robustness(np.array([0.5, 0.6]), 0.4, Line(1.0, 0.0, 0.1, 3))
    with pytest.raises(UserError, match="There are 2 and 2 accuracies"):
        fit_line([0.5, 0.6], [0.1, 0.2])
    with pytest.raises(UserError, match="dataset is 'imagenet-sketches', did you mean imagenet-sketch"):
        standard_networks("imagenet-sketches")


def test_imagenet_r_has_200_classes_of_which_some_are_those_of_imagenet_a():
    classes = imagenet_subset("imagenet-r")
    assert (len(classes), len(set(classes)), sorted(classes)) == (200, 200, list(classes))
    wnids = imagenet_wnids()
    # The first and the last of the folders in the published archive.
    assert (wnids[classes[0]], wnids[classes[-1]]) == ("n01443537", "n12267677")
