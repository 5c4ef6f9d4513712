"""Telling images of unknown classes from those of known ones (Hendrycks et al. 2021, ImageNet-O)."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import check_choice
from lit_robust.metrics.base import Measure, finite, numbers, refuse, same_length
from lit_robust.metrics.ranking import area_under_roc, average_precision, false_positive_rate, precision_recall

LogitScore = Literal["max_softmax", "max_logit", "energy"]


def ood_score(logits: Numbers, score: LogitScore) -> Tensor:
    """Return how far out of distribution an image is held to be: high means out.

    ``max_softmax`` is one minus the largest probability (Hendrycks & Gimpel 2017), which ranks as its negative does;
    ``max_logit`` the negative largest logit (Hendrycks et al. 2022); ``energy`` the negative log of the summed
    exponentials (Liu et al. 2020, temperature 1).

    Args:
        logits: fp32 ``[B, num_classes]``; minus infinity for classes that do not take part.
        score: which one.

    Returns:
        ``[B]`` fp32.

    Raises:
        UserError: there is no such score.
    """
    check_choice("score", score, get_args(LogitScore))
    logits = numbers("logits", logits, 2)
    if score == "energy":
        return -logits.logsumexp(1)
    largest, place = logits.max(1, keepdim=True)
    if score == "max_logit":
        return -largest[:, 0]
    # From the other classes' share, so that answers of more than 7 digits of confidence do not tie at 1.
    others = (logits - largest).exp().scatter(1, place, 0.0).sum(1)
    return others / (1 + others)


class OodDetection(Measure):
    """AUPR, AUROC and FPR95 of a score, out of distribution being positive; exact over ranks.

    The state is every sample's score and kind, 8 bytes a sample on its device, and on every rank those of all once it
    is computed: 96 kB for ImageNet-O's 12,000.

    Example:
        >>> metric = OodDetection()
        >>> metric.update(torch.tensor([0.9, 0.2, 0.7]), torch.tensor([True, False, False]))
        >>> metric.compute()["auroc"]
        tensor(1., dtype=torch.float64)
    """

    plotted = "aupr"
    scores: list[Tensor]
    positive: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("positive", [], dist_reduce_fx="cat")

    def update(self, scores: Numbers, positive: Numbers) -> None:
        """Keep a batch: scores ``[B]``, high where out of distribution, and ``[B]`` bool, true out of distribution.

        Raises:
            DataError: a score is not a finite number.
        """
        scores = numbers("scores", scores, 1, device=self.device)
        positive = numbers("positive", positive, 1, "truth", self.device)
        same_length({"scores": scores, "positive": positive})
        refuse(finite(scores))
        self.scores.append(scores.float())
        # Of the type of an empty state, which torchmetrics sends for a rank that has seen no batch.
        self.positive.append(positive.float())

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return each sample's score, ``[N]``, and whether it is out of distribution, ``[N]`` bool, on the CPU."""
        if isinstance(self.scores, list) and not self.scores:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        return dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.positive).cpu() > 0

    def compute(self) -> dict[str, Tensor]:
        """Return the three measures, and what they were measured on.

        Returns:
            ``aupr``, ``auroc`` and ``fpr95``, float64 scalars, NaN where one kind is lacking; ``positives`` and
            ``negatives``, int64 scalars; ``curve``, ``[points, 2]`` recall and precision at up to 101 thresholds.
        """
        scores, positive = self.kept()
        return {
            "aupr": average_precision(scores, positive),
            "auroc": area_under_roc(scores, positive),
            "fpr95": false_positive_rate(scores, positive, 0.95),
            "positives": positive.sum(),
            "negatives": (~positive).sum(),
            "curve": thinned_curve(scores, positive),
        }


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
