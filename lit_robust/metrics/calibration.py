"""Whether a network's confidence is its accuracy: RMS calibration error, ECE and AURRA.

Each function takes a set of samples and not a sequence: where confidences are equal, each of those samples counts as
right as they are on average. So no value depends on the order of samples, of batches or of ranks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lit_robust.metrics.checks import answered, labelled, refuse
from lit_robust.metrics.plotting import Computed, shown

BIN_SIZE = 100
ECE_BINS = 15


def ranked(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return confidences in rising order, and how right each is; equal ones share their mean.

    Args:
        confidence: ``[N]`` in [0, 1].
        correct: ``[N]`` bool.

    Returns:
        Two float64 ``[N]`` on the CPU.
    """
    values, group, sizes = torch.unique(confidence.cpu(), return_inverse=True, return_counts=True)
    right = torch.zeros(len(values), dtype=torch.float64).index_add_(0, group, correct.cpu().double())
    return values.double().repeat_interleave(sizes), (right / sizes).repeat_interleave(sizes)


def _squared_gaps(confidence: Tensor, correct: Tensor, bin_size: int) -> Tensor:
    """Return of each bin its share of the samples times the squared gap between confidence and accuracy."""
    confidence, correct = ranked(confidence, correct)
    # The last bin takes what is left over; fewer samples than a bin holds make one bin.
    starts = torch.arange(max(1, len(confidence) // bin_size)) * bin_size
    place = torch.searchsorted(starts, torch.arange(len(confidence)), right=True) - 1
    gaps = torch.zeros(len(starts), dtype=torch.float64).index_add_(0, place, confidence - correct)
    sizes = torch.bincount(place, minlength=len(starts))
    return (gaps / sizes).square() * sizes / len(confidence)


def rms_calibration_error(confidence: Tensor, correct: Tensor, bin_size: int = BIN_SIZE) -> Tensor:
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


def rms_calibration_error_published(confidence: Tensor, correct: Tensor, bin_size: int = BIN_SIZE) -> Tensor:
    """Return ``rms_calibration_error`` as the code behind the published values computes it.

    ``calib_err`` in hendrycks/natural-adv-examples ``calibration_tools.py`` leaves out the last bin, that of the
    highest confidences, from the sum but not from the number of samples. For comparison with those values alone.
    NaN where there is no other bin.
    """
    gaps = _squared_gaps(confidence, correct, bin_size)[:-1]
    return gaps.sum().sqrt() if len(gaps) else gaps.new_tensor(torch.nan)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> Tensor:
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


def area_under_response_rate_accuracy(confidence: Tensor, correct: Tensor) -> Tensor:
    """Return AURRA: the mean, over all response rates, of the accuracy on the most confident samples.

    Hendrycks et al. 2019 (natural adversarial examples), ``aurra`` in ``calibration_tools.py``.

    Returns:
        A float64 scalar in [0, 1]; NaN without samples.
    """
    falling = ranked(confidence, correct)[1].flip(0)
    return (falling.cumsum(0) / torch.arange(1, len(falling) + 1)).mean()


class Calibration(Metric):
    """RMS calibration error, AURRA and ECE; exact over ranks.

    The state is every sample's confidence and whether it is right, 8 bytes a sample on its device, and on every rank
    those of all once it is computed: 400 kB for 50,000.

    Example:
        >>> metric = Calibration()
        >>> metric.update(torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log(), torch.tensor([0, 1]))
        >>> metric.compute()["aurra"]
        tensor(0.7500, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep a batch: logits ``[B, num_classes]``, minus infinity for classes left out; labels ``[B]``.

        Raises:
            DataError: a label is none of the classes, or a confidence is not a number.
        """
        confidence, answer = logits.float().softmax(1).max(1)
        refuse(labelled(labels, logits.shape[1]), answered(confidence))
        self.confidence.append(confidence)
        # Of the type of an empty state, which torchmetrics sends for a rank that has seen no batch.
        self.correct.append((answer == labels).float())

    def compute(self) -> dict[str, Tensor]:
        """Return the four measures, float64 scalars by name; NaN where nothing was counted."""
        if isinstance(self.confidence, list) and not self.confidence:
            confidence, correct = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        else:
            confidence, correct = dim_zero_cat(self.confidence), dim_zero_cat(self.correct) > 0
        return {
            "rms_calibration_error": rms_calibration_error(confidence, correct),
            "rms_calibration_error_published": rms_calibration_error_published(confidence, correct),
            "aurra": area_under_response_rate_accuracy(confidence, correct),
            "ece": expected_calibration_error(confidence, correct),
        }

    def plot(self, val: Computed | Sequence[Computed] | None = None, ax: Any = None) -> Any:
        """Plot the RMS calibration error, of one or several computed values; see torchmetrics."""
        return self._plot(shown(val or self.compute(), "rms_calibration_error"), ax)
