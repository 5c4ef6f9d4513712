"""Top-k accuracy, and accuracy under attack, with exact counts."""

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError
from lit_robust.metrics.base import Measure, among_classes, check_labels, numbers, same_length, whole_numbers


def topk_correct(logits: Numbers, labels: Numbers, top_k: Numbers) -> Tensor:
    """Count the samples whose label is among the ``k`` highest logits, for each ``k``.

    Ties go to the lower class number, as with ``argmax``; a NaN logit beats every number, so it never helps.

    Args:
        logits: ``[B, num_classes]``; ``B`` may be 0.
        labels: ``[B]`` whole numbers.
        top_k: how many answers are allowed.

    Returns:
        ``[len(top_k)]`` int64 counts.

    Raises:
        DataError: a label is none of the classes.

    Example:
        >>> topk_correct(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]), torch.tensor([1, 2]), (1, 2))
        tensor([1, 2])
    """
    logits = numbers("logits", logits, 2)
    labels = numbers("labels", labels, 1, "whole", logits.device)
    same_length({"logits": logits, "labels": labels})
    check_labels(labels, logits.shape[1])
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    behind = (logits < own) | ((logits == own) & (classes >= labels[:, None]))
    rank = (~behind).sum(1)
    return torch.stack([(rank < k).sum() for k in whole_numbers("top_k", top_k)])


class TopKAccuracy(Measure):
    """Fractions of samples whose label is among the k highest logits; exact over ranks.

    A sample with a logit that is not a number counts as ``topk_correct`` says, and ``compute`` warns of how many there
    were.

    Args:
        top_k: how many answers are allowed, such as ``(1, 5)``.
        classes: the classes a decision is taken among, such as ImageNet-A's 200; empty for all of the network's.

    Raises:
        UserError: ``top_k`` is empty, or holds a number below 1.

    Example:
        >>> metric = TopKAccuracy(top_k=(1, 2))
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> metric.compute()
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    correct: Tensor
    total: Tensor
    undefined: Tensor

    def __init__(self, top_k: Numbers = (1, 5), classes: Numbers = ()) -> None:
        super().__init__()
        self.top_k, self.classes = whole_numbers("top_k", top_k), whole_numbers("classes", classes)
        if not self.top_k or min(self.top_k) < 1:
            raise UserError(f"top_k is {self.top_k}: name numbers of answers, each at least 1, such as (1, 5).")
        self.add_state("correct", torch.zeros(len(self.top_k), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("undefined", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Numbers, labels: Numbers) -> None:
        """Count a batch: logits ``[B, num_classes]``, labels ``[B]``; ``B`` may be 0.

        Raises:
            DataError: a label is none of the classes.
        """
        logits = numbers("logits", logits, 2, device=self.device)
        labels = numbers("labels", labels, 1, "whole", self.device)
        if self.classes:
            check_labels(labels, logits.shape[1], self.classes)
        self.correct += topk_correct(among_classes(logits, self.classes), labels, self.top_k)
        self.total += len(labels)
        self.undefined += logits.isnan().any(1).sum()

    def compute(self) -> Tensor:
        """Return the fractions ``[len(top_k)]``, a scalar for a single k; NaN where nothing was counted."""
        if self.undefined:
            rank_zero_warn(
                f"The network's answers to {int(self.undefined)} of {int(self.total)} images hold logits that are not "
                "numbers, which count as mistakes: check its weights and precision."
            )
        return self.correct.cpu().double() / self.total.cpu()  # Not every accelerator has float64.


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

    survivors: Tensor
    total: Tensor

    def __init__(self, strengths: int = 1) -> None:
        super().__init__()
        self.add_state("survivors", torch.zeros(strengths, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, survives: Numbers) -> None:
        """Count a batch: ``[strengths, B]`` bool, true where the sample is still classified right.

        Raises:
            UserError: it is of another number of strengths.
        """
        survives = numbers("survives", survives, 2, "truth", self.device)
        if len(survives) != len(self.survivors):
            raise UserError(f"survives is of {len(survives)} strengths: give those of {len(self.survivors)}.")
        self.survivors += survives.sum(1)
        self.total += survives.shape[1]

    def compute(self) -> Tensor:
        """Return the fractions ``[strengths]``, a scalar for a single one; NaN where nothing was counted."""
        return self.survivors.cpu().double() / self.total.cpu()  # Not every accelerator has float64.
