"""Which classes a decision is taken among, and labels that are none of a network's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_robust.core.errors import DataError
from lit_robust.metrics.checks import labelled, refuse
from lit_robust.metrics.class_numbers import on_device


def among_classes(logits: Tensor, classes: Sequence[int]) -> Tensor:
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
    if not classes:
        return logits
    if min(classes) < 0 or max(classes) >= logits.shape[1]:
        raise DataError(
            f"The set names class {max(classes)}, but the network has {logits.shape[1]} classes: give a network of the "
            "set's classes."
        )
    kept = on_device(tuple(classes), logits.device)
    chosen = torch.full_like(logits, -torch.inf)
    chosen[:, kept] = logits[:, kept]
    return chosen


def check_labels(labels: Tensor, num_classes: int, classes: Sequence[int] = ()) -> None:
    """Raise a DataError where a label is none of a network's classes, or none of those that are decided among.

    Such a label would count as a mistake, or, on a GPU, end the process without saying why.

    Args:
        labels: ``[B]`` int64; ``B`` may be 0.
        num_classes: classes of the network.
        classes: the classes a decision is taken among; empty for all.
    """
    refuse(labelled(labels, num_classes, classes))
