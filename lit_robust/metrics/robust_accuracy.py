"""Accuracy under attack, counted exactly."""

import torch
from torch import Tensor

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError
from lit_robust.metrics.base import Measure, numbers


class RobustAccuracy(Measure):
    """Fractions of samples still classified right at each strength of an attack; exact over ranks.

    Args:
        strengths: how many strengths are tested.

    Example:
        >>> metric = RobustAccuracy(2)
        >>> metric.update(torch.tensor([[True, True, False], [True, False, False]]))
        >>> metric.compute()
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    standing: Tensor
    total: Tensor

    def __init__(self, strengths: int = 1) -> None:
        super().__init__()
        self.add_state("standing", torch.zeros(strengths, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, survives: Numbers) -> None:
        """Count a batch: ``[strengths, B]`` bool, true where the sample is still classified right.

        Raises:
            UserError: it is of another number of strengths.
        """
        survives = numbers("survives", survives, 2, "truth", self.device)
        if len(survives) != len(self.standing):
            raise UserError(f"survives is of {len(survives)} strengths: give those of {len(self.standing)}.")
        self.standing += survives.sum(1)
        self.total += survives.shape[1]

    def compute(self) -> Tensor:
        """Return the fractions ``[strengths]``, a scalar for a single one; NaN where nothing was counted."""
        return self.standing.cpu().double() / self.total.cpu()  # Not every accelerator has float64.
