"""Whether two observers err on the same images (Geirhos, Meding & Wichmann 2020)."""

import torch
from torch import Tensor

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError
from lit_robust.metrics.base import Computed, Measure, numbers


def error_consistency(counts: Numbers) -> Tensor:
    """Return Cohen's kappa of two observers being right: agreement beyond that of independent ones as good as they are.

    Args:
        counts: ``[..., 2, 2]`` trials, 0 or more; the first place wrong or right by one observer, the second by the
            other.

    Returns:
        ``[...]`` float64, 1 for errors on the same images, 0 for independent ones; NaN where chance alone makes them
        agree on every trial (both always right, or both never) or there is no trial. model-vs-human ``analyses.py``
        calls such a case 1.

    Raises:
        UserError: they are not counts in two rows and two columns.

    Example:
        >>> error_consistency(torch.tensor([[20, 10], [10, 60]]))
        tensor(0.5238, dtype=torch.float64)
    """
    counts = numbers("counts", counts).cpu().double()  # Not every accelerator has float64.
    if counts.shape[-2:] != (2, 2) or bool((counts < 0).any()):
        raise UserError(f"The counts have the shape {list(counts.shape)}: give two rows and columns of 0 or more.")
    fractions = counts / counts.sum((-2, -1), keepdim=True)
    observed = fractions[..., 0, 0] + fractions[..., 1, 1]
    expected = (fractions.sum(-1) * fractions.sum(-2)).sum(-1)
    return (observed - expected) / (1 - expected)


_SEEN = torch.tensor([-1, 0, 1])  # What an observer can have done with an image.


class ErrorConsistency(Measure):
    """Error consistency of a network with each of some observers; exact over ranks.

    Args:
        observers: how many.

    Example:
        >>> metric = ErrorConsistency(1)
        >>> metric.update(torch.tensor([True, False]), torch.tensor([[1, 0]]))
        >>> metric.compute()["error_consistency"]
        tensor(1., dtype=torch.float64)
    """

    plot_lower_bound = -1.0
    plotted = "error_consistency"
    counts: Tensor

    def __init__(self, observers: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(observers, 2, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, correct: Numbers, observed: Numbers) -> None:
        """Count a batch.

        Args:
            correct: ``[B]`` bool, whether the network is right.
            observed: ``[observers, B]`` 1 where an observer is right, 0 where it is wrong, -1 where it did not see the
                image.

        Raises:
            UserError: they are of other shapes, or ``observed`` holds another number.
        """
        correct = numbers("correct", correct, 1, "truth", self.device)
        observed = numbers("observed", observed, 2, device=self.device)
        known = torch.isin(observed, _SEEN.to(observed))
        if observed.shape != (len(self.counts), len(correct)) or not bool(known.all()):
            raise UserError(
                f"observed has the shape {list(observed.shape)}: give {len(self.counts)} observers' answers to the "
                f"{len(correct)} images, each 1, 0 or -1."
            )
        for own in (0, 1):
            for other in (0, 1):
                self.counts[:, own, other] += ((correct.long() == own) & (observed == other)).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Return ``error_consistency``, float64 ``[observers]``, and ``counts``, int64 ``[observers, 2, 2]``.

        Of a single observer torchmetrics makes the first a scalar.
        """
        return {"error_consistency": error_consistency(self.counts), "counts": self.counts.cpu()}

    def plotted_value(self, computed: Computed) -> Tensor:
        """Return the observers' mean."""
        return computed["error_consistency"].nanmean()
