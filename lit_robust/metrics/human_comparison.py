"""How near a network's decisions are to people's, condition by condition (Geirhos et al. 2021).

The measures and their means are those of bethgelab/model-vs-human ``plotting/analyses.py`` and ``plot.py``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError
from lit_robust.metrics.base import numbers, same_length
from lit_robust.metrics.error_consistency import error_consistency
from lit_robust.metrics.intervals import DRAWS, Draws, resamples

MEASURES = ("accuracy_difference", "observed_consistency", "error_consistency")


@dataclass(frozen=True)
class Closeness:
    """How near one observer's decisions are to each of some others', float64 ``[..., others, conditions]``.

    Attributes:
        accuracy: the observer's own, on the images that the other one saw.
        other_accuracy: the other one's.
        accuracy_difference: the square of their difference, as the published values are.
        observed_consistency: the share of images that both get right or both wrong.
        error_consistency: Cohen's kappa of that; 1 where they agree on every image, also by chance alone.
    """

    accuracy: Tensor
    other_accuracy: Tensor
    accuracy_difference: Tensor
    observed_consistency: Tensor
    error_consistency: Tensor

    def means(self) -> dict[str, Tensor]:
        """Return each of ``MEASURES``: the mean over conditions, then over the other observers, ``[...]``."""
        return {name: getattr(self, name).nanmean(-1).nanmean(-1) for name in MEASURES}


def closeness(tables: Numbers) -> Closeness:
    """Return how near an observer is to others.

    Args:
        tables: ``[..., others, conditions, 2, 2]`` images; first whether the observer is wrong or right, then whether
            the other one is. Where both saw none, all is NaN.

    Raises:
        UserError: they are not such tables.

    Example:
        >>> near = closeness(torch.tensor([[[[20, 10], [10, 60]]]]))
        >>> near.observed_consistency.item(), near.accuracy_difference.item()
        (0.8, 0.0)
    """
    counts = numbers("tables", tables).cpu().double()
    if counts.ndim < 4:
        raise UserError(f"tables has the shape {list(counts.shape)}: give [others, conditions, 2, 2].")
    kappa = error_consistency(counts)
    fractions = counts / counts.sum((-2, -1), keepdim=True)
    own, other = fractions[..., 1, :].sum(-1), fractions[..., :, 1].sum(-1)
    agreed = fractions[..., 0, 0] + fractions[..., 1, 1]
    kappa = torch.where(agreed == 1, 1.0, kappa)
    return Closeness(own, other, (own - other).square(), agreed, kappa)


def tables_with(correct: Numbers, observed: Numbers, conditions: Numbers, count: int) -> Tensor:
    """Count how often an observer and each of some others are right and wrong on the same images.

    Args:
        correct: ``[N]``, whether the observer is right.
        observed: ``[others, N]`` 1 where another is right, 0 where wrong, -1 where they did not see the image.
        conditions: ``[N]`` number of each image's condition.
        count: how many conditions there are.

    Returns:
        int64 ``[others, count, 2, 2]``, see `closeness`.

    Raises:
        UserError: they are of other numbers of images.
    """
    correct, observed, conditions = _checked(correct, observed, conditions)
    tables = torch.zeros(len(observed), count, 2, 2, dtype=torch.int64)
    for place, row in enumerate(observed):
        seen = row >= 0
        where = conditions[seen], correct[seen].long(), row[seen]
        tables[place].index_put_(where, torch.ones(int(seen.sum()), dtype=torch.int64), accumulate=True)
    return tables


def _checked(correct: Numbers, observed: Numbers, conditions: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    right = numbers("correct", correct, 1, "truth").cpu()
    others = numbers("observed", observed, 2, "whole").cpu()
    where = numbers("conditions", conditions, 1, "whole").cpu()
    same_length({"correct": right, "conditions": where, "observed": others.T})
    return right, others, where


def pairs_of(observed: Numbers, conditions: Numbers, count: int) -> Tensor:
    """Return the tables of every pair of some observers, int64 ``[pairs, count, 2, 2]``; see `tables_with`.

    Args:
        observed: ``[observers, N]``, as there.
        conditions: see there.
        count: see there.
    """
    seen = numbers("observed", observed, 2, "whole").cpu()
    where = numbers("conditions", conditions, 1, "whole").cpu()
    parts = [
        tables_with(one[one >= 0] == 1, seen[place + 1 :, one >= 0], where[one >= 0], count)
        for place, one in enumerate(seen)
    ]
    return torch.cat(parts)


def closeness_draws(
    correct: Numbers, observed: Numbers, conditions: Numbers, count: int, name: str, draws: int = DRAWS
) -> dict[str, Draws]:
    """Return bootstrap draws of the means of `Closeness`, over images, those of each condition apart.

    Args:
        correct: see `tables_with`.
        observed: see there.
        conditions: see there.
        count: see there.
        name: of the draws.
        draws: how many.
    """
    right, others, where = _checked(correct, observed, conditions)
    cells = []
    for condition in range(count):
        chosen = where == condition
        if bool(chosen.any()):
            cells.append(_drawn(right[chosen], others[:, chosen], f"{name}, condition {condition}", draws))
    means = closeness(torch.stack(cells, 2)).means() if cells else {}
    return {measure: values.numpy() for measure, values in means.items()}


def _drawn(right: Tensor, others: Tensor, name: str, draws: int) -> Tensor:
    """Return ``[draws, others, 2, 2]`` tables of images that come as often as each draw says."""
    of_both = [((right == own) & (others == other)).double() for own in (0, 1) for other in (0, 1)]
    weights = torch.from_numpy(np.concatenate(list(resamples(len(right), name, draws)))).double()
    counts = torch.stack([weights @ one.T for one in of_both], -1)
    return counts.reshape(*counts.shape[:-1], 2, 2)
