"""Accuracy under attack, counted exactly."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class RobustAccuracy(Metric):
    """Fractions of samples still classified right at each strength of an attack; exact over ranks.

    Args:
        strengths: how many strengths are tested.

    Example:
        >>> metric = RobustAccuracy(2)
        >>> metric.update(torch.tensor([[True, True, False], [True, False, False]]))
        >>> metric.compute()
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    standing: Tensor
    total: Tensor

    def __init__(self, strengths: int = 1) -> None:
        super().__init__()
        self.add_state("standing", torch.zeros(strengths, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, survives: Tensor) -> None:
        """Count a batch: ``[strengths, B]`` bool, true where the sample is still classified right."""
        self.standing += survives.sum(1)
        self.total += survives.shape[1]

    def compute(self) -> Tensor:
        """Return the fractions ``[strengths]``, a scalar for a single one; NaN where nothing was counted."""
        return self.standing.cpu().double() / self.total.cpu()  # Not every accelerator has float64.

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several computed values; see torchmetrics."""
        return self._plot(val, ax)
