"""Shape bias on cue-conflict images (Geirhos et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_robust.core.errors import DataError
from lit_robust.metrics.checks import answered, numbered, refuse
from lit_robust.metrics.class_numbers import on_device
from lit_robust.metrics.plotting import Computed, shown

Aggregation = Literal["mean", "max", "sum"]


def category_probabilities(
    logits: Tensor, categories: Mapping[str, Sequence[int]], aggregation: Aggregation = "mean"
) -> Tensor:
    """Return one score a category: softmax over all classes, then an aggregate over each category's classes.

    The mean is what Geirhos et al. recommend and both of their repositories do by default
    (rgeirhos/texture-vs-shape: ``code/mapping.py``; bethgelab/model-vs-human: ``decision_mappings.py``).

    Args:
        logits: ``[B, num_classes]``.
        categories: name to class numbers; the order is that of the returned columns.
        aggregation: ``mean``, ``max`` or ``sum`` over a category's classes.

    Returns:
        ``[B, len(categories)]`` fp32.

    Raises:
        DataError: a class of a category is none of the network's.
    """
    highest = max(max(classes) for classes in categories.values())
    if highest >= logits.shape[1]:
        raise DataError(
            f"A category has class {highest}, but the network has {logits.shape[1]} classes: give a network of the "
            "categories' classes."
        )
    probabilities = logits.float().softmax(1)
    columns = [probabilities[:, on_device(tuple(classes), logits.device)] for classes in categories.values()]
    if aggregation == "mean":
        return torch.stack([column.mean(1) for column in columns], 1)
    if aggregation == "max":
        return torch.stack([column.amax(1) for column in columns], 1)
    return torch.stack([column.sum(1) for column in columns], 1)


def decision_counts(decisions: Tensor, shapes: Tensor, textures: Tensor, num_categories: int) -> Tensor:
    """Count decisions for each category of the shape.

    Args:
        decisions: ``[B]`` chosen category.
        shapes: ``[B]`` category of the shape.
        textures: ``[B]`` category of the texture; equal to the shape's where there is no conflict.
        num_categories: how many there are.

    Returns:
        ``[num_categories, 5]`` int64: shape, texture and other decisions on conflict images; right and all answers
        on images without conflict.
    """
    conflict = shapes != textures
    columns = torch.stack(
        [
            conflict & (decisions == shapes),
            conflict & (decisions == textures),
            conflict & (decisions != shapes) & (decisions != textures),
            ~conflict & (decisions == shapes),
            ~conflict,
        ],
        1,
    )
    counts = torch.zeros(num_categories, 5, dtype=torch.int64, device=shapes.device)
    return counts.index_add_(0, shapes, columns.long())


def shape_bias(shape: Tensor, texture: Tensor) -> Tensor:
    """Return shape / (shape + texture) decisions; NaN where there are neither.

    A ratio of sums over all images, not a mean of per-category ratios. "Other" decisions do not enter.

    Example:
        >>> shape_bias(torch.tensor(133), torch.tensor(597))  # SqueezeNet 1.1 of the published decisions
        tensor(0.1822, dtype=torch.float64)
    """
    return shape.cpu().double() / (shape + texture).cpu()  # Not every accelerator has float64.


class ShapeBias(Metric):
    """Shape bias with its decision counts, per category and overall; exact over ranks.

    Args:
        categories: name to class numbers of the classifier; labels count in this order.
        aggregation: how a category's probability follows from its classes'.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    counts: Tensor

    def __init__(self, categories: Mapping[str, Sequence[int]], aggregation: Aggregation = "mean") -> None:
        super().__init__()
        self.categories = {name: tuple(classes) for name, classes in categories.items()}
        self.aggregation: Aggregation = aggregation
        self.add_state("counts", torch.zeros(len(self.categories), 5, dtype=torch.int64), dist_reduce_fx="sum")

    def decide(self, logits: Tensor) -> Tensor:
        """Return the chosen category ``[B]`` of logits ``[B, num_classes]``."""
        return category_probabilities(logits, self.categories, self.aggregation).argmax(1)

    def update(self, logits: Tensor, shapes: Tensor, textures: Tensor) -> None:
        """Count a batch: logits ``[B, num_classes]``, categories of shape and texture ``[B]``.

        Raises:
            DataError: a label is none of the categories, or a probability is not a number.
        """
        probabilities = category_probabilities(logits, self.categories, self.aggregation)
        count, fix = len(self.categories), "number the categories in their order"
        refuse(
            numbered(shapes, count, "shape", fix), numbered(textures, count, "texture", fix), answered(probabilities)
        )
        self.counts += decision_counts(probabilities.argmax(1), shapes, textures, count)

    def compute(self) -> dict[str, Tensor]:
        """Return the bias over all conflict images and the counts behind it.

        Returns:
            ``shape_bias``, a scalar, NaN if no decision was for shape or texture; and ``counts``,
            ``[categories, 5]``: see ``decision_counts``.
        """
        return {"shape_bias": shape_bias(self.counts[:, 0].sum(), self.counts[:, 1].sum()), "counts": self.counts}

    def plot(self, val: Computed | Sequence[Computed] | None = None, ax: Any = None) -> Any:
        """Plot the shape bias, of one or several computed values; see torchmetrics."""
        return self._plot(shown(val or self.compute(), "shape_bias"), ax)
