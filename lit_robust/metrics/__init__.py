"""Measures: a pure function each, and a torchmetrics class around it whose states are sums."""

from lit_robust.metrics.accuracy import TopKAccuracy, topk_correct
from lit_robust.metrics.robust_accuracy import RobustAccuracy
from lit_robust.metrics.shape_bias import ShapeBias, category_probabilities, shape_bias

__all__ = ["RobustAccuracy", "ShapeBias", "TopKAccuracy", "category_probabilities", "shape_bias", "topk_correct"]
