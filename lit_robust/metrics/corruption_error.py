"""Corruption errors on ImageNet-C (Hendrycks & Dietterich 2019, section 4.2)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError, check_choice
from lit_robust.metrics.base import (
    Measure,
    answered,
    labelled,
    numbered,
    numbers,
    refuse,
    same_length,
)
from lit_robust.reference.corruption_baselines import (
    SEVERITIES,
    BaselineName,
    CorruptionBaseline,
    benchmark_corruptions,
    benchmark_of,
    corruption_baseline,
    known_corruptions,
)

TESTED_MEAN = "mean_accuracy_of_tested_cells"
EXTRA_MEAN = "mean_accuracy_of_extra_corruptions"


def corruption_error(
    top1: Mapping[str, float | Sequence[float]], baseline: CorruptionBaseline | BaselineName = "imagenet-c"
) -> float:
    """Return the mean corruption error (mCE) over the benchmark's 15 corruptions, in units of the baseline's errors.

    Args:
        top1: accuracies, fractions: of each of the 75 cells, ``fog/3`` and so on; or of each corruption one for each
            severity, from 1 to 5. The four extra corruptions may be there and do not count.
        baseline: whose errors are the unit: AlexNet's on all of ImageNet-C (``imagenet-c``) or on RobustBench's 5,000
            images (``robustbench-5000``), or others.

    Returns:
        1.0 where errors are those of the baseline; publications often print 100 times it.

    Raises:
        UserError: a cell is missing or does not exist, there is no such baseline, or an accuracy is not a fraction.

    Example:
        >>> from lit_robust.reference import corruption_baseline
        >>> alexnet = corruption_baseline("imagenet-c").errors
        >>> round(corruption_error({name: [1 - e for e in errors] for name, errors in alexnet.items()}), 3)
        1.0
    """
    unit = baseline if isinstance(baseline, CorruptionBaseline) else corruption_baseline(baseline)
    cells: dict[str, float] = {}
    for name, value in top1.items():
        rates = numbers(f"The accuracy of {name}", value).reshape(-1).tolist()
        if "/" in name and len(rates) == 1:
            cells[name] = rates[0]
        elif len(rates) == len(SEVERITIES):
            cells |= {cell_name(name, severity): rate for severity, rate in zip(SEVERITIES, rates, strict=True)}
        else:
            raise UserError(
                f"{name!r} has {len(rates)} accuracies: give 5 of a corruption, or 1 of a cell such as fog/3."
            )
    check_cells(cells)
    needed = [cell_name(name, severity) for name in benchmark_corruptions() for severity in SEVERITIES]
    if missing := [cell for cell in needed if cell not in cells]:
        raise UserError(
            f"{len(missing)} of the 75 cells have no accuracy, the first {missing[0]}: mCE is a mean over all; "
            "`summarise` gives what some of them allow."
        )
    return summarise(cells, unit)["mce"]


def error_ratio(mean_error: float, baseline_mean_error: float) -> float:
    """Return one corruption's error: errors summed over the severities, in units of the baseline's sum.

    A ratio of sums, which is that of means, not a mean of ratios.

    Args:
        mean_error: mean error rate over the severities, a fraction.
        baseline_mean_error: the baseline's, a fraction above 0.

    Raises:
        UserError: a rate is not a fraction, or the baseline's is 0.

    Example:
        >>> round(error_ratio(1 - 0.4583, 0.819324), 4)  # ResNet-50 on fog
        0.6612
    """
    unit = _fraction(baseline_mean_error, "the baseline's mean error")
    return _fraction(mean_error, "the mean error") / _unit(unit, "mean error")


def relative_corruption_error(
    mean_error: float, clean_error: float, baseline_mean_error: float, baseline_clean_error: float
) -> float:
    """Return by how much errors rise over the clean error, in units of the baseline's rise.

    Args:
        mean_error: mean error rate over the severities, a fraction.
        clean_error: error rate of the same network on the images as they were, a fraction.
        baseline_mean_error: the baseline's, a fraction.
        baseline_clean_error: the baseline's, a fraction.

    Raises:
        UserError: a rate is not a fraction, or the baseline's does not rise.
    """
    rise = _fraction(mean_error, "the mean error") - _fraction(clean_error, "the clean error")
    unit = _fraction(baseline_mean_error, "the baseline's mean error")
    unit -= _fraction(baseline_clean_error, "the baseline's clean error")
    return rise / _unit(unit, "rise over its clean error")


def _unit(value: float, what: str) -> float:
    if value == 0:
        raise UserError(f"The baseline's {what} is 0, and no error can be divided by it: give another baseline.")
    return value


def cell_name(corruption: str, severity: int) -> str:
    """Return what a cell of ImageNet-C is called, such as ``fog/3``."""
    return f"{corruption}/{severity}"


def check_cells(cells: Iterable[str]) -> None:
    """Raise a UserError where a cell's corruption is not known, or its severity not 1 to 5."""
    for cell in cells:
        corruption, _, severity = cell.partition("/")
        check_choice(f"The corruption of the cell {cell!r}", corruption, known_corruptions())
        if severity not in map(str, SEVERITIES):
            raise UserError(f"The cell {cell!r} has severity {severity!r}: give 1 to 5, such as fog/3.")


def _fraction(value: float, what: str) -> float:
    """Return a rate, or raise a UserError where it is not from 0 to 1, such as a percentage."""
    rate = float(value)
    if not 0 <= rate <= 1:
        raise UserError(f"{what[0].upper()}{what[1:]} is {rate:g}: give a fraction from 0 to 1, not a percentage.")
    return rate


def summarise(
    top1: Mapping[str, float], baseline: CorruptionBaseline | None = None, clean_error: float | None = None
) -> dict[str, float]:
    """Return every measure that the cells allow, by name.

    Args:
        top1: accuracy, a fraction, of each cell that was tested, ``fog/3`` and so on.
        baseline: whose errors are the unit; None gives accuracies alone.
        clean_error: error rate of the same network on the images as they were; None gives nothing relative.

    Returns:
        - ``mce``, the mean corruption error over the 15 benchmark corruptions, and ``relative_mce``: only where all
          75 cells were tested;
        - ``mean_accuracy`` over those 75 cells, or all of ImageNet-C-bar's or ImageNet-3DCC's, else
          ``mean_accuracy_of_tested_cells``, over those of them there are;
        - ``mean_accuracy_of_extra_corruptions``, over what there is of the four extra ones, which enter no other mean;
        - ``ce_<corruption>`` and ``top1_<corruption>``: of a corruption tested at all five severities;
        - ``top1_<corruption>_<severity>``.

    Raises:
        UserError: a cell does not exist, or an accuracy or error is not a fraction.
    """
    check_cells(top1)
    top1 = {cell: _fraction(value, f"the accuracy of {cell}") for cell, value in top1.items()}
    corruptions = list(dict.fromkeys(cell.split("/")[0] for cell in top1))
    means = {
        corruption: sum(top1[cell_name(corruption, severity)] for severity in SEVERITIES) / len(SEVERITIES)
        for corruption in corruptions
        if all(cell_name(corruption, severity) in top1 for severity in SEVERITIES)
    }
    units = {} if baseline is None else baseline.mean_errors
    errors = {name: error_ratio(1 - mean, units[name]) for name, mean in means.items() if name in units}
    benchmark = benchmark_of(corruptions)
    found: dict[str, float] = {}
    if all(name in errors for name in benchmark):
        found["mce"] = sum(errors[name] for name in benchmark) / len(benchmark)
        if baseline is not None and clean_error is not None:
            relative = [
                relative_corruption_error(1 - means[name], clean_error, units[name], baseline.clean_error)
                for name in benchmark
            ]
            found["relative_mce"] = sum(relative) / len(relative)
    if all(name in means for name in benchmark):
        found["mean_accuracy"] = sum(means[name] for name in benchmark) / len(benchmark)
    elif tested := [value for cell, value in top1.items() if cell.split("/")[0] in benchmark]:
        found[TESTED_MEAN] = sum(tested) / len(tested)
    if extra := [value for cell, value in top1.items() if cell.split("/")[0] not in benchmark]:
        found[EXTRA_MEAN] = sum(extra) / len(extra)
    found |= {f"ce_{name}": error for name, error in errors.items()}
    found |= {f"top1_{name}": mean for name, mean in means.items()}
    return found | {f"top1_{cell.replace('/', '_')}": value for cell, value in top1.items()}


class CorruptionError(Measure):
    """Accuracy in every cell of ImageNet-C, and the mean corruption error; exact over ranks.

    Args:
        cells: name of every group of samples, ``fog/3`` and so on; those without a sample count as not tested.
        baseline: whose errors are the unit; None gives accuracies alone.

    Raises:
        UserError: a cell does not exist.

    Example:
        >>> metric = CorruptionError(["fog/1", "fog/2"])
        >>> metric.update(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))
        >>> metric.compute()["top1"]
        tensor([1., 0.], dtype=torch.float64)
    """

    higher_is_better = False
    plot_upper_bound = None
    plotted = "mce"
    correct: Tensor
    total: Tensor

    def __init__(self, cells: Sequence[str], baseline: CorruptionBaseline | None = None) -> None:
        super().__init__()
        check_cells(cells)
        self.cells = tuple(cells)
        self.baseline = baseline
        self.add_state("correct", torch.zeros(len(self.cells), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(len(self.cells), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Numbers, labels: Numbers, groups: Numbers) -> None:
        """Count a batch: logits ``[B, num_classes]``, labels ``[B]``, numbers of their cells ``[B]``.

        Raises:
            DataError: a label is none of the classes, a number none of the cells, or a logit not a number.
        """
        logits = numbers("logits", logits, 2, device=self.device)
        labels = numbers("labels", labels, 1, "whole", self.device)
        groups = numbers("groups", groups, 1, "whole", self.device)
        same_length({"logits": logits, "labels": labels, "groups": groups})
        refuse(
            labelled(labels, logits.shape[1]),
            numbered(groups, len(self.cells), "cell", "name every cell of the set"),
            answered(logits),
        )
        self.correct.index_add_(0, groups, (logits.argmax(1) == labels).long())
        self.total.index_add_(0, groups, torch.ones_like(groups))

    def compute(self) -> dict[str, Tensor]:
        """Return what was counted.

        Returns:
            ``mce``, a scalar, NaN unless all 75 benchmark cells have samples and there is a baseline; ``top1``,
            ``[cells]``, NaN where a cell has none; ``count``, ``[cells]`` int64.
        """
        top1 = self.correct.cpu().double() / self.total.cpu()  # Not every accelerator has float64.
        summary = summarise(tested_cells(self.cells, top1, self.total), self.baseline)
        mce = torch.tensor(summary.get("mce", float("nan")), dtype=torch.float64)
        return {"mce": mce, "top1": top1, "count": self.total.cpu()}


def tested_cells(cells: Sequence[str], top1: Tensor, count: Tensor) -> dict[str, float]:
    """Return the accuracy of each cell that has samples."""
    # Of a single cell torchmetrics makes scalars.
    rows = zip(cells, top1.reshape(-1).tolist(), count.reshape(-1).tolist(), strict=True)
    return {cell: value for cell, value, counted in rows if counted}
