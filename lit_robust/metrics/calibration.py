"""Whether a network's confidence is its accuracy: RMS calibration error, ECE and AURRA.

Each function takes a set of samples and not a sequence: where confidences are equal, each of those samples counts as
right as they are on average. So no value depends on the order of samples, of batches or of ranks.
"""

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError
from lit_robust.metrics.base import Measure, answered, labelled, numbers, refuse, same_length

BIN_SIZE = 100
ECE_BINS = 15
ROUNDING = 1e-6  # A sum of fp32 probabilities may come out this much above 1.


def ranked(confidence: Numbers, correct: Numbers) -> tuple[Tensor, Tensor]:
    """Return confidences in rising order, and how right each is; equal ones share their mean.

    Args:
        confidence: ``[N]`` in [0, 1].
        correct: ``[N]`` bool.

    Returns:
        Two float64 ``[N]`` on the CPU.

    Raises:
        UserError: a confidence is not from 0 to 1, such as a percentage.
    """
    confidence = numbers("confidence", confidence, 1).cpu()
    correct = numbers("correct", correct, 1, "truth").cpu()
    same_length({"confidence": confidence, "correct": correct})
    outside = ~((confidence >= 0) & (confidence <= 1 + ROUNDING))
    if bool(outside.any()):
        raise UserError(f"A confidence is {float(confidence[outside][0]):g}: give fractions from 0 to 1.")
    values, group, sizes = torch.unique(confidence, return_inverse=True, return_counts=True)
    right = torch.zeros(len(values), dtype=torch.float64).index_add_(0, group, correct.double())
    return values.double().repeat_interleave(sizes), (right / sizes).repeat_interleave(sizes)


def _squared_gaps(confidence: Numbers, correct: Numbers, bin_size: int) -> Tensor:
    """Return of each bin its share of the samples times the squared gap between confidence and accuracy."""
    confidence, correct = ranked(confidence, correct)
    # The last bin takes what is left over; fewer samples than a bin holds make one bin.
    starts = torch.arange(max(1, len(confidence) // bin_size)) * bin_size
    place = torch.searchsorted(starts, torch.arange(len(confidence)), right=True) - 1
    gaps = torch.zeros(len(starts), dtype=torch.float64).index_add_(0, place, confidence - correct)
    sizes = torch.bincount(place, minlength=len(starts))
    return (gaps / sizes).square() * sizes / len(confidence)


def rms_calibration_error(confidence: Numbers, correct: Numbers, bin_size: int = BIN_SIZE) -> Tensor:
    """Return the root mean square gap between confidence and accuracy over bins of equally many samples.

    Hendrycks et al. 2019 and 2021: samples in the order of their confidence, 100 a bin, the last takes the rest.

    Args:
        confidence: ``[N]`` in [0, 1], the probability of the answer.
        correct: ``[N]`` bool, whether the answer is right.
        bin_size: samples a bin.

    Returns:
        A float64 scalar in [0, 1]; NaN without samples.
    """
    return _squared_gaps(confidence, correct, bin_size).sum().sqrt()


def rms_calibration_error_published(confidence: Numbers, correct: Numbers, bin_size: int = BIN_SIZE) -> Tensor:
    """Return ``rms_calibration_error`` as the code behind the published values computes it.

    ``calib_err`` in hendrycks/natural-adv-examples ``calibration_tools.py`` leaves out the last bin, that of the
    highest confidences, from the sum but not from the number of samples. For comparison with those values alone.
    NaN where there is no other bin.
    """
    gaps = _squared_gaps(confidence, correct, bin_size)[:-1]
    return gaps.sum().sqrt() if len(gaps) else gaps.new_tensor(torch.nan)


def expected_calibration_error(confidence: Numbers, correct: Numbers, bins: int = ECE_BINS) -> Tensor:
    """Return the mean gap between confidence and accuracy over bins of equal width (Guo et al. 2017, 15 bins).

    Bin i holds the confidences in (i / bins, (i + 1) / bins]; the first one holds 0, too.

    Returns:
        A float64 scalar in [0, 1]; NaN without samples.
    """
    confidence, correct = ranked(confidence, correct)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, confidence - correct)
    return gaps.abs().sum() / len(confidence)


def area_under_response_rate_accuracy(confidence: Numbers, correct: Numbers) -> Tensor:
    """Return AURRA: the mean, over all response rates, of the accuracy on the most confident samples.

    Hendrycks et al. 2019 (natural adversarial examples), ``aurra`` in ``calibration_tools.py``.

    Returns:
        A float64 scalar in [0, 1]; NaN without samples.
    """
    falling = ranked(confidence, correct)[1].flip(0)
    return (falling.cumsum(0) / torch.arange(1, len(falling) + 1)).mean()


class Calibration(Measure):
    """RMS calibration error, AURRA and ECE; exact over ranks.

    The state is every sample's confidence and whether it is right, 8 bytes a sample on its device, and on every rank
    those of all once it is computed: 400 kB for 50,000.

    Example:
        >>> metric = Calibration()
        >>> metric.update(torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log(), torch.tensor([0, 1]))
        >>> metric.compute()["aurra"]
        tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = False
    plotted = "rms_calibration_error"
    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, logits: Numbers, labels: Numbers) -> None:
        """Keep a batch: logits ``[B, num_classes]``, minus infinity for classes left out; labels ``[B]``.

        Raises:
            DataError: a label is none of the classes, or a confidence is not a number.
        """
        logits = numbers("logits", logits, 2, device=self.device)
        labels = numbers("labels", labels, 1, "whole", self.device)
        same_length({"logits": logits, "labels": labels})
        confidence, answer = logits.float().softmax(1).max(1)
        refuse(labelled(labels, logits.shape[1]), answered(confidence))
        self.confidence.append(confidence)
        # Of the type of an empty state, which torchmetrics sends for a rank that has seen no batch.
        self.correct.append((answer == labels).float())

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return each sample's confidence, ``[N]``, and whether it is right, ``[N]`` bool, on the CPU."""
        if isinstance(self.confidence, list) and not self.confidence:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        return dim_zero_cat(self.confidence).cpu(), dim_zero_cat(self.correct).cpu() > 0

    def compute(self) -> dict[str, Tensor]:
        """Return the four measures, float64 scalars by name; NaN where nothing was counted."""
        confidence, correct = self.kept()
        return {
            "rms_calibration_error": rms_calibration_error(confidence, correct),
            "rms_calibration_error_published": rms_calibration_error_published(confidence, correct),
            "aurra": area_under_response_rate_accuracy(confidence, correct),
            "ece": expected_calibration_error(confidence, correct),
        }
