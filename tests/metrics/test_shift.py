import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from lit_robust.core.errors import UserError
from lit_robust.metrics.shift import error_entropy, frechet_distance, mean_error_entropy, transfer


def features(count, dimensions, seed):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_by_scipys_root():
    one, other = features(60, 5, 0), features(40, 5, 1) * torch.arange(1, 6) + 2
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (one, other)]
    expected = float(((one.mean(0) - other.mean(0)) ** 2).sum())
    expected += np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [4, 300])
def test_closed_forms_also_with_fewer_images_than_dimensions(count):
    x, shift = features(count, 20, 2), features(1, 20, 3)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-10)
    # Covariances that commute: a scaling by s moves each deviation from sqrt(a) to s sqrt(a).
    centred = x - x.mean(0)
    expected = (3 - 1) ** 2 * float(centred.square().sum()) / (count - 1)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(expected, rel=1e-10)


def test_diagonal_covariances():
    """Of commuting diagonals the distance is the sum of (sqrt(a) - sqrt(b))^2."""
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    a, b = torch.tensor([4.0, 9.0]), torch.tensor([1.0, 25.0])
    found = frechet_distance(signs * a.sqrt(), signs * b.sqrt())
    assert found == pytest.approx(4 / 3 * float((a.sqrt() - b.sqrt()).square().sum()))


def test_features_that_do_not_fit_are_refused():
    for wrong in (torch.zeros(1, 3), torch.zeros(5, 4)):
        with pytest.raises(UserError, match=r"have the shapes \[5, 3\] and"):
            frechet_distance(torch.zeros(5, 3), wrong)
    with pytest.raises(UserError, match="A feature is not a finite number"):
        frechet_distance(torch.zeros(5, 3), torch.full((5, 3), torch.inf))


def test_entropy_of_errors():
    labels = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    predicted = [1, 2, 3, 1, 2, 3, 0, 0, 0, 1, 0, 1, 0, 3]
    found = error_entropy(labels, predicted, 4)
    two = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(3)
    assert found[:3].tolist() == pytest.approx([1, 0, two])
    assert found[3].isnan()
    # Whatever the classes' numbers; that without an error is left out.
    mean = mean_error_entropy([7 * label for label in labels], [7 * label for label in predicted])
    assert (mean.value, mean.count) == (pytest.approx((1 + two) / 3), 3)
    assert mean_error_entropy(labels, labels) is mean_error_entropy([0, 1], [1, 1]) is None
    with pytest.raises(UserError, match="num_classes is 2"):
        error_entropy([0], [1], 2)


def test_transfer_beside_as_many_of_the_same_classes_by_drawing_them():
    source = torch.Generator().manual_seed(5)
    labels = torch.randint(3, (90,), generator=source)
    correct = torch.rand(90, generator=source) < torch.tensor([0.2, 0.5, 0.9])[labels]
    chosen = [n for n in range(90) if labels[n] != 1 or n % 3 == 0][:40]
    found = transfer(labels, correct, chosen)
    random = np.random.default_rng(0)
    sizes = {one: int((labels[chosen] == one).sum()) for one in range(3)}
    means = []
    for _ in range(4000):
        drawn = [random.choice(np.flatnonzero(labels == one), size, False) for one, size in sizes.items()]
        means.append(correct[np.concatenate(drawn)].double().mean())
    assert found.matched == pytest.approx(float(np.mean(means)), abs=4 * float(np.std(means)) / math.sqrt(4000))
    assert (found.count, found.right) == (40, int(correct[chosen].sum()))
    assert found.ratio == pytest.approx(found.accuracy / found.matched)
    assert found.interval[0] < found.accuracy < found.interval[1]
    with pytest.raises(UserError, match="No image was chosen"):
        transfer(labels, correct, [])
    with pytest.raises(UserError, match="correct"):
        transfer([0, 1], [0.5, 1.0], [0])
