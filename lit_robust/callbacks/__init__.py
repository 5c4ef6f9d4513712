"""Evaluations, each bound to a named test set, and the files and logs they fill."""

from lit_robust.callbacks.accuracy import CleanAccuracy
from lit_robust.callbacks.adversarial import AdversarialAccuracy
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.overfitting import OverfittingMonitor
from lit_robust.callbacks.predictions import PredictionFile
from lit_robust.callbacks.results_file import ResultsFile
from lit_robust.callbacks.shape_bias import ShapeBiasEvaluation

__all__ = [
    "AdversarialAccuracy",
    "CleanAccuracy",
    "EvaluationCallback",
    "OverfittingMonitor",
    "PredictionFile",
    "ResultsFile",
    "ShapeBiasEvaluation",
]
