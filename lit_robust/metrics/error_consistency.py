"""Whether two observers err on the same images (Geirhos, Meding & Wichmann 2020)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_robust.metrics.plotting import Computed, shown


def error_consistency(counts: Tensor) -> Tensor:
    """Return Cohen's kappa of two observers being right: agreement beyond that of independent ones as good as they are.

    Args:
        counts: ``[..., 2, 2]`` trials, the first place wrong or right by one observer, the second by the other.

    Returns:
        ``[...]`` float64, 1 for errors on the same images, 0 for independent ones; NaN where chance alone makes them
        agree on every trial (both always right, or both never) or there is no trial. model-vs-human ``analyses.py``
        calls such a case 1.

    Example:
        >>> error_consistency(torch.tensor([[20, 10], [10, 60]]))
        tensor(0.5238, dtype=torch.float64)
    """
    counts = counts.cpu().double()  # Not every accelerator has float64.
    fractions = counts / counts.sum((-2, -1), keepdim=True)
    observed = fractions[..., 0, 0] + fractions[..., 1, 1]
    expected = (fractions.sum(-1) * fractions.sum(-2)).sum(-1)
    return (observed - expected) / (1 - expected)


class ErrorConsistency(Metric):
    """Error consistency of a network with each of some observers; exact over ranks.

    Args:
        observers: how many.

    Example:
        >>> metric = ErrorConsistency(1)
        >>> metric.update(torch.tensor([True, False]), torch.tensor([[1, 0]]))
        >>> metric.compute()["error_consistency"]
        tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    counts: Tensor

    def __init__(self, observers: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(observers, 2, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, correct: Tensor, observed: Tensor) -> None:
        """Count a batch.

        Args:
            correct: ``[B]`` bool, whether the network is right.
            observed: ``[observers, B]`` 1 where an observer is right, 0 where it is wrong, -1 where it did not see the
                image.
        """
        for own in (0, 1):
            for other in (0, 1):
                self.counts[:, own, other] += ((correct.long() == own) & (observed == other)).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Return ``error_consistency``, float64 ``[observers]``, and ``counts``, int64 ``[observers, 2, 2]``.

        Of a single observer torchmetrics makes the first a scalar.
        """
        return {"error_consistency": error_consistency(self.counts), "counts": self.counts.cpu()}

    def plot(self, val: Computed | Sequence[Computed] | None = None, ax: Any = None) -> Any:
        """Plot the observers' mean, of one or several computed values; see torchmetrics."""
        values = shown(val or self.compute(), "error_consistency")
        return self._plot(values.nanmean() if isinstance(values, Tensor) else [each.nanmean() for each in values], ax)
