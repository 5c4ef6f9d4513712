"""How a set differs from another for networks: Fréchet distance of features, transfer of errors, their spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError
from lit_robust.metrics.base import numbers, same_length
from lit_robust.metrics.intervals import Estimate, Interval, mean_of, wilson


def frechet_distance(first: Numbers, second: Numbers) -> float:
    """Return the Fréchet distance of two sets of features: of normal distributions with their means and covariances.

    ``||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson and Landau 1982; Heusel et al. 2017, with Inception's
    features). It is computed in float64 from the singular values of the product of the centred features, which needs
    no root of a matrix and is exact where there are fewer images than dimensions. A value belongs to its network,
    layer and numbers of images, and falls with more images: compare sets of equal numbers.

    Args:
        first: ``[N, D]``, an image a row.
        second: ``[M, D]``.

    Raises:
        UserError: a set has fewer than two images, another number of dimensions, or a feature that is not finite.

    Example:
        >>> shift = torch.tensor([3.0, 4.0])
        >>> features = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(features, features + shift), 5)
        25.0
    """
    one, other = (numbers(name, given, 2).double().cpu() for name, given in (("first", first), ("second", second)))
    if min(len(one), len(other)) < 2 or one.shape[1] != other.shape[1]:
        raise UserError(
            f"The features have the shapes {list(one.shape)} and {list(other.shape)}: give at least two images of each "
            "set, and as many dimensions."
        )
    if not (bool(one.isfinite().all()) and bool(other.isfinite().all())):
        raise UserError("A feature is not a finite number: check the network's weights and precision.")
    # C = A^T A for A = (X - mean) / sqrt(n - 1); the eigenvalues of C1 C2 are the squared singular values of A B^T.
    means = one.mean(0), other.mean(0)
    roots = [(x - mean) / math.sqrt(len(x) - 1) for x, mean in zip((one, other), means, strict=True)]
    roots = [torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root for root in roots]
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(root.square().sum() for root in roots)
    return max(float((means[0] - means[1]).square().sum() + spread - 2 * cross), 0.0)


def error_entropy(labels: Numbers, predicted: Numbers, num_classes: int) -> Tensor:
    """Return how widely the errors on each true class are spread: 0 for one wrong answer alone, 1 for all alike.

    Args:
        labels: ``[N]`` whole numbers.
        predicted: ``[N]`` whole numbers.
        num_classes: how many there are, at least 3.

    Returns:
        float64 ``[num_classes]``, the entropy of the wrong answers over its maximum ``log(num_classes - 1)``; NaN for a
        class without an error.

    Raises:
        UserError: they are of other numbers, or there are fewer than three classes.
    """
    labels, predicted = numbers("labels", labels, 1, "whole").cpu(), numbers("predicted", predicted, 1, "whole").cpu()
    same_length({"labels": labels, "predicted": predicted})
    if num_classes < 3:
        raise UserError(f"num_classes is {num_classes}: errors spread over at least two other classes.")
    wrong = labels != predicted
    counts = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    counts.index_put_((labels[wrong], predicted[wrong]), torch.ones(int(wrong.sum()), dtype=torch.float64), True)
    shares = counts / counts.sum(1, keepdim=True)
    entropy: Tensor = -torch.xlogy(shares, shares).sum(1) / math.log(num_classes - 1)
    return entropy


def mean_error_entropy(labels: Numbers, predicted: Numbers) -> Estimate | None:
    """Return the mean of `error_entropy` over classes with an error; None without errors, or among fewer than three.

    The classes are those that are a label or an answer.

    Args:
        labels: ``[N]`` whole numbers.
        predicted: ``[N]`` whole numbers.

    Example:
        >>> mean_error_entropy([3, 3, 8, 9], [8, 9, 8, 9]).value
        1.0
    """
    given = [numbers("labels", labels, 1, "whole").cpu(), numbers("predicted", predicted, 1, "whole").cpu()]
    seen, places = torch.unique(torch.cat(given), return_inverse=True)
    if len(seen) < 3 or torch.equal(*given):
        return None
    return mean_of(error_entropy(places[: len(given[0])], places[len(given[0]) :], len(seen)))


@dataclass(frozen=True)
class Transfer:
    """How a network does on a set that another one filtered.

    Attributes:
        count: images of the set.
        right: how many it names right.
        matched: its accuracy on images of the pool of the same classes: the mean over all draws of as many images of
            each class, in closed form.
        interval: 95 %, Wilson's, of the accuracy on the set.
    """

    count: int
    right: int
    matched: float
    interval: Interval | None

    @property
    def accuracy(self) -> float:
        """Its accuracy on the set; NaN for an empty set."""
        return self.right / self.count if self.count else math.nan

    @property
    def ratio(self) -> float:
        """The accuracy over the matched one: 0 where all errors transfer, 1 where none does."""
        return self.accuracy / self.matched if self.matched else math.nan


def transfer(labels: Numbers, correct: Numbers, chosen: Sequence[int]) -> Transfer:
    """Return how a network does on some images of a pool, and on as many of the same classes.

    Args:
        labels: ``[N]`` whole numbers, of the whole pool.
        correct: ``[N]``, whether the network names each image right.
        chosen: numbers of the images of the set.

    Raises:
        UserError: the parts are of other numbers of images, or nothing was chosen.
    """
    labels, correct = numbers("labels", labels, 1, "whole").cpu(), numbers("correct", correct, 1, "truth").cpu()
    same_length({"labels": labels, "correct": correct})
    if not len(chosen):
        raise UserError("No image was chosen: loosen the filter.")
    some = torch.tensor(list(chosen), dtype=torch.int64)
    classes, sizes = torch.unique(labels[some], return_counts=True)
    each = torch.stack([correct[labels == one].double().mean() for one in classes])
    right = int(correct[some].sum())
    return Transfer(len(some), right, float((each * sizes).sum() / len(some)), wilson(right, len(some)))
