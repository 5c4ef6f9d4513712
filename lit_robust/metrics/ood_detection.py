"""Telling images of unknown classes from those of known ones (Hendrycks et al. 2021, ImageNet-O)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lit_robust.metrics.checks import finite, refuse
from lit_robust.metrics.plotting import Computed, shown
from lit_robust.metrics.ranking import area_under_roc, average_precision, false_positive_rate, precision_recall

LogitScore = Literal["max_softmax", "max_logit", "energy"]


def ood_score(logits: Tensor, score: LogitScore) -> Tensor:
    """Return how strange an image looks, high where it is held for out of distribution.

    ``max_softmax`` is one minus the largest probability (Hendrycks & Gimpel 2017), which ranks as its negative does;
    ``max_logit`` the negative largest logit (Hendrycks et al. 2022); ``energy`` the negative log of the summed
    exponentials (Liu et al. 2020, temperature 1).

    Args:
        logits: fp32 ``[B, num_classes]``; minus infinity for classes that do not take part.
        score: which one.

    Returns:
        ``[B]`` fp32.
    """
    if score == "energy":
        return -logits.logsumexp(1)
    largest, place = logits.max(1, keepdim=True)
    if score == "max_logit":
        return -largest[:, 0]
    # From the other classes' share, so that answers of more than 7 digits of confidence do not tie at 1.
    others = (logits - largest).exp().scatter(1, place, 0.0).sum(1)
    return others / (1 + others)


class OodDetection(Metric):
    """AUPR, AUROC and FPR95 of a score, out of distribution being positive; exact over ranks.

    The state is every sample's score and kind, 8 bytes a sample on its device, and on every rank those of all once it
    is computed: 96 kB for ImageNet-O's 12,000.

    Example:
        >>> metric = OodDetection()
        >>> metric.update(torch.tensor([0.9, 0.2, 0.7]), torch.tensor([True, False, False]))
        >>> metric.compute()["auroc"]
        tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    scores: list[Tensor]
    positive: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("positive", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, positive: Tensor) -> None:
        """Keep a batch: scores ``[B]``, high where strange, and ``[B]`` bool, true out of distribution.

        Raises:
            DataError: a score is no finite number.
        """
        refuse(finite(scores))
        self.scores.append(scores.float())
        # Of the type of an empty state, which torchmetrics sends for a rank that has seen no batch.
        self.positive.append(positive.float())

    def _kept(self) -> tuple[Tensor, Tensor]:
        if isinstance(self.scores, list) and not self.scores:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        return dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.positive).cpu() > 0

    def compute(self) -> dict[str, Tensor]:
        """Return the three measures, and what they were measured on.

        Returns:
            ``aupr``, ``auroc`` and ``fpr95``, float64 scalars, NaN where one kind is lacking; ``positives`` and
            ``negatives``, int64 scalars; ``curve``, ``[points, 2]`` recall and precision at up to 101 thresholds.
        """
        scores, positive = self._kept()
        return {
            "aupr": average_precision(scores, positive),
            "auroc": area_under_roc(scores, positive),
            "fpr95": false_positive_rate(scores, positive, 0.95),
            "positives": positive.sum(),
            "negatives": (~positive).sum(),
            "curve": thinned_curve(scores, positive),
        }

    def plot(self, val: Computed | Sequence[Computed] | None = None, ax: Any = None) -> Any:
        """Plot the AUPR, of one or several computed values; see torchmetrics."""
        return self._plot(shown(val or self.compute(), "aupr"), ax)


def thinned_curve(scores: Tensor, positive: Tensor, points: int = 101) -> Tensor:
    """Return recall and precision, ``[<= points, 2]`` float64, at thresholds spread evenly over the recall.

    For a reader's eyes: areas are computed from all thresholds.
    """
    if not len(scores) or not positive.any():
        return torch.zeros(0, 2, dtype=torch.float64)
    precision, recall = precision_recall(scores, positive)
    wanted = torch.linspace(0, 1, points, dtype=torch.float64)
    chosen = torch.unique(torch.searchsorted(recall, wanted).clamp(max=len(recall) - 1))
    return torch.stack([recall[chosen], precision[chosen]], 1)
