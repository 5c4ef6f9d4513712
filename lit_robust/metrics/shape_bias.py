"""Shape bias on cue-conflict images (Geirhos et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import DataError, check_choice
from lit_robust.metrics.base import Measure, answered, numbered, numbers, on_device, refuse, same_length

Aggregation = Literal["mean", "max", "sum"]


def category_probabilities(
    logits: Numbers, categories: Mapping[str, Sequence[int]], aggregation: Aggregation = "mean"
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
        UserError: there is no such aggregation.
    """
    check_choice("aggregation", aggregation, get_args(Aggregation))
    logits = numbers("logits", logits, 2)
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


def shape_bias(shape: Numbers, texture: Numbers) -> Tensor:
    """Return shape / (shape + texture) decisions; NaN where there are neither.

    A ratio of sums over all images, not a mean of per-category ratios. "Other" decisions do not enter.

    Example:
        >>> shape_bias(133, 597)  # SqueezeNet 1.1 of the published decisions
        tensor(0.1822, dtype=torch.float64)
    """
    shape, texture = numbers("shape", shape).cpu().double(), numbers("texture", texture).cpu().double()
    return shape / (shape + texture)


class ShapeBias(Measure):
    """Shape bias with its decision counts, per category and overall; exact over ranks.

    Args:
        categories: name to class numbers of the classifier; labels count in this order.
        aggregation: how a category's probability follows from its classes'.
    """

    higher_is_better = None
    plotted = "shape_bias"
    counts: Tensor

    def __init__(self, categories: Mapping[str, Sequence[int]], aggregation: Aggregation = "mean") -> None:
        super().__init__()
        self.categories = {name: tuple(classes) for name, classes in categories.items()}
        self.aggregation: Aggregation = aggregation
        self.add_state("counts", torch.zeros(len(self.categories), 5, dtype=torch.int64), dist_reduce_fx="sum")

    def decide(self, logits: Numbers) -> Tensor:
        """Return the chosen category ``[B]`` of logits ``[B, num_classes]``."""
        return category_probabilities(logits, self.categories, self.aggregation).argmax(1)

    def update(self, logits: Numbers, shapes: Numbers, textures: Numbers) -> None:
        """Count a batch: logits ``[B, num_classes]``, categories of shape and texture ``[B]``.

        Raises:
            DataError: a label is none of the categories, or a probability is not a number.
        """
        logits = numbers("logits", logits, 2, device=self.device)
        shapes = numbers("shapes", shapes, 1, "whole", self.device)
        textures = numbers("textures", textures, 1, "whole", self.device)
        same_length({"logits": logits, "shapes": shapes, "textures": textures})
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
