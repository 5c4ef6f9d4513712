"""What all metrics share: the numbers they take, checks of a batch, the choice of classes, and plots."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_robust.core.arrays import Numbers, as_tensor
from lit_robust.core.errors import DataError, UserError

Kind = Literal["real", "whole", "truth"]
Check = tuple[Tensor, Callable[[int], str]]
"""Which samples are wrong, ``[B]`` bool, and what to say of the one in a place."""
Computed = dict[str, Tensor]


class Measure(Metric):
    """A torchmetrics class whose state is sums or kept scores.

    Attributes:
        plotted: which value its plot shows, where ``compute`` returns several by name.
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0
    plotted = ""

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several computed values, or what was counted so far; see torchmetrics."""
        computed = self.compute() if val is None else val
        if self.plotted:
            computed = (
                self.plotted_value(computed)
                if isinstance(computed, dict)
                else [self.plotted_value(each) for each in computed]
            )
        return self._plot(computed, ax)

    def plotted_value(self, computed: Computed) -> Tensor:
        """Return the value that a plot shows, of what ``compute`` returned."""
        return computed[self.plotted]


def numbers(
    what: str, values: Numbers, axes: int | None = None, kind: Kind = "real", device: torch.device | None = None
) -> Tensor:
    """Return numbers as a tensor: a tensor as it is, anything else as a copy.

    Args:
        what: their name, for the sentence.
        values: to take.
        axes: how many axes they must have; None for any.
        kind: ``real`` gives a floating type; ``whole`` int64, of whole numbers alone; ``truth`` bool, of true and
            false or 1 and 0.
        device: where to put what is not a tensor; None for the processor.

    Raises:
        UserError: they are not numbers, of another kind, or have other axes.
    """
    given = as_tensor(what, values, device)
    if given.is_complex() or (axes is not None and given.ndim != axes):
        wanted = "real numbers" if axes is None else f"real numbers in {axes} axes"
        raise UserError(f"{what} has the type {given.dtype} and the shape {list(given.shape)}: give {wanted}.")
    if kind == "real":
        return given if given.is_floating_point() else given.double()
    if kind == "whole":
        if given.is_floating_point() or given.dtype == torch.bool:
            raise UserError(f"{what} is of the type {given.dtype}: give whole numbers.")
        return given.long()
    if given.dtype != torch.bool and bool(((given != 0) & (given != 1)).any()):
        raise UserError(f"{what} holds other numbers than 0 and 1: give true or false, or 1 and 0.")
    return given.bool()


def whole_numbers(what: str, values: Numbers) -> tuple[int, ...]:
    """Return the whole numbers of a list, an array or a tensor, or a single one, such as classes to decide among.

    Raises:
        UserError: they are not whole numbers.
    """
    given = as_tensor(what, values).reshape(-1)
    return tuple(numbers(what, given, 1, "whole").tolist()) if len(given) else ()


def same_length(parts: Mapping[str, Tensor]) -> None:
    """Raise a UserError unless all parts of a batch, by name, are of as many samples: others would be broadcast."""
    if len({len(part) for part in parts.values()}) > 1:
        said = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
        raise UserError(f"The parts of a batch are of different numbers of samples ({said}): give as many of each.")


def refuse(*checks: Check) -> None:
    """Raise a DataError about the first sample that a check finds; the device is waited for once, for all checks.

    Args:
        checks: masks of the same length, which may be 0.
    """
    found = torch.stack([wrong for wrong, _ in checks])
    if found.any():
        number, place = found.nonzero()[0].tolist()
        raise DataError(checks[number][1](place))


def numbered(values: Tensor, count: int, what: str, fix: str) -> Check:
    """Return the check that values ``[B]`` int64 are numbers from 0 to ``count - 1``.

    Args:
        values: such as the categories of the textures.
        count: how many there are.
        what: what to call a value, such as ``texture``.
        fix: what to do about others.
    """
    return (
        (values < 0) | (values >= count),
        lambda place: f"An image has {what} {int(values[place])}, where numbers go from 0 to {count - 1}: {fix}.",
    )


def labelled(labels: Tensor, num_classes: int, classes: Numbers = ()) -> Check:
    """Return the check that labels ``[B]`` int64 are a network's classes, and of those that are decided among.

    Args:
        labels: what images show.
        num_classes: classes of the network.
        classes: the classes a decision is taken among; empty for all.
    """
    outside, chosen = (labels < 0) | (labels >= num_classes), whole_numbers("classes", classes)
    if chosen:
        outside = outside | ~torch.isin(labels, on_device(chosen, labels.device))
    among = f"the {len(chosen)} classes of the set" if chosen else f"the network's {num_classes} classes"
    return (
        outside,
        lambda place: (
            f"An image has label {int(labels[place])}, which is none of {among}: evaluate with a network and a set "
            "that have the same classes."
        ),
    )


def answered(answers: Tensor) -> Check:
    """Return the check that answers, ``[B]`` or ``[B, N]``, are numbers: logits, or what was computed from them."""
    wrong = answers.isnan() if answers.ndim == 1 else answers.isnan().any(1)
    return (
        wrong,
        lambda place: (
            f"The network's answer to image {place} of a batch is not a number: check its weights and precision."
        ),
    )


def finite(scores: Tensor) -> Check:
    """Return the check that scores ``[B]`` are finite, as a rank among them needs."""
    return (
        ~scores.isfinite(),
        lambda place: (
            f"The score of image {place} of a batch is {float(scores[place])}: give finite scores, or check the "
            "network's weights and precision."
        ),
    )


def check_labels(labels: Numbers, num_classes: int, classes: Numbers = ()) -> None:
    """Raise a DataError where a label is none of a network's classes, or none of those that are decided among.

    Such a label would count as a mistake, or, on a GPU, end the process without saying why.

    Args:
        labels: ``[B]`` whole numbers; ``B`` may be 0.
        num_classes: classes of the network.
        classes: the classes a decision is taken among; empty for all.
    """
    refuse(labelled(numbers("labels", labels, 1, "whole"), num_classes, classes))


def among_classes(logits: Numbers, classes: Numbers) -> Tensor:
    """Return logits that are minus infinity for all but some classes, so that softmax and argmax leave those out.

    That is the published protocol of ImageNet-A and ImageNet-O: logits are chosen before the softmax
    (hendrycks/natural-adv-examples ``eval_many_models.py``). Class numbers stay what they were.

    Args:
        logits: ``[B, num_classes]``.
        classes: the classes to decide among; empty for all.

    Returns:
        ``[B, num_classes]``; the argument itself where nothing is left out.

    Raises:
        DataError: a class is none of the network's.

    Example:
        >>> among_classes(torch.tensor([[3.0, 1.0, 2.0]]), (1, 2)).softmax(1)
        tensor([[0.0000, 0.2689, 0.7311]])
    """
    logits, kept = numbers("logits", logits, 2), whole_numbers("classes", classes)
    if not kept:
        return logits
    if min(kept) < 0 or max(kept) >= logits.shape[1]:
        wrong = min(kept) if min(kept) < 0 else max(kept)
        raise DataError(
            f"The set names class {wrong}, but the network has {logits.shape[1]} classes: give a network of the "
            "set's classes."
        )
    places = on_device(kept, logits.device)
    chosen = torch.full_like(logits, -torch.inf)
    chosen[:, places] = logits[:, places]
    return chosen


@lru_cache(maxsize=256)
def on_device(classes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return class numbers as int64 ``[N]`` on a device: copied there once, as each copy makes the processor wait.

    Args:
        classes: such as those of a category.
        device: where they are used as an index.

    Returns:
        The same tensor at every call, which nobody may write into.
    """
    # An index made in Lightning's test loop may be used later under autograd, which takes no inference tensors.
    with torch.inference_mode(False):
        return torch.tensor(classes, dtype=torch.int64, device=device)
