"""Measures: a pure function each, and a torchmetrics class around it whose states are sums or kept scores."""

from lit_robust.core.effective_robustness import effective_robustness, fit_line
from lit_robust.metrics.accuracy import RobustAccuracy, TopKAccuracy, topk_correct
from lit_robust.metrics.base import among_classes, check_labels
from lit_robust.metrics.calibration import (
    Calibration,
    area_under_response_rate_accuracy,
    expected_calibration_error,
    rms_calibration_error,
    rms_calibration_error_published,
)
from lit_robust.metrics.corruption_error import (
    CorruptionError,
    corruption_error,
    error_ratio,
    relative_corruption_error,
    summarise,
)
from lit_robust.metrics.error_consistency import ErrorConsistency, error_consistency
from lit_robust.metrics.ood_detection import OodDetection, ood_score
from lit_robust.metrics.ranking import area_under_roc, average_precision, false_positive_rate, precision_recall
from lit_robust.metrics.shape_bias import ShapeBias, category_probabilities, shape_bias

__all__ = [
    "Calibration",
    "CorruptionError",
    "ErrorConsistency",
    "OodDetection",
    "RobustAccuracy",
    "ShapeBias",
    "TopKAccuracy",
    "among_classes",
    "area_under_response_rate_accuracy",
    "area_under_roc",
    "average_precision",
    "category_probabilities",
    "check_labels",
    "corruption_error",
    "effective_robustness",
    "error_consistency",
    "error_ratio",
    "expected_calibration_error",
    "false_positive_rate",
    "fit_line",
    "ood_score",
    "precision_recall",
    "relative_corruption_error",
    "rms_calibration_error",
    "rms_calibration_error_published",
    "shape_bias",
    "summarise",
    "topk_correct",
]
