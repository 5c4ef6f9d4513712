"""Evaluations, each bound to a named test set, and the files and logs they fill."""

from lit_robust.callbacks.accuracy import CalibrationEvaluation, ClassSubsetAccuracy, CleanAccuracy
from lit_robust.callbacks.adversarial import AdversarialAccuracy
from lit_robust.callbacks.category_accuracy import CategoryAccuracy, ListedClassAccuracy, MergedClassAccuracy
from lit_robust.callbacks.checkpoints import CheckpointBetweenSteps, SaveOnSignal
from lit_robust.callbacks.correct_samples import CorrectSamples
from lit_robust.callbacks.corruption import CorruptionEvaluation
from lit_robust.callbacks.cue_examples import CueExamples
from lit_robust.callbacks.error_consistency import ErrorConsistencyEvaluation
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.human_comparison import HumanComparison
from lit_robust.callbacks.monitors import Announcement, OverfittingMonitor, Throughput
from lit_robust.callbacks.ood import OodEvaluation
from lit_robust.callbacks.paired import PairedDifference
from lit_robust.callbacks.predictions import KeepPredictions, PredictionFile
from lit_robust.callbacks.restriction import SampleRestriction
from lit_robust.callbacks.results_file import ResultsFile
from lit_robust.callbacks.resumption import Resumption
from lit_robust.callbacks.sample_images import SampleImages
from lit_robust.callbacks.shape_bias import ShapeBiasEvaluation
from lit_robust.callbacks.theta_search import ThetaSearch

__all__ = [
    "AdversarialAccuracy",
    "Announcement",
    "CalibrationEvaluation",
    "CategoryAccuracy",
    "CheckpointBetweenSteps",
    "ClassSubsetAccuracy",
    "CleanAccuracy",
    "CorrectSamples",
    "CorruptionEvaluation",
    "CueExamples",
    "ErrorConsistencyEvaluation",
    "EvaluationCallback",
    "HumanComparison",
    "KeepPredictions",
    "ListedClassAccuracy",
    "MergedClassAccuracy",
    "OodEvaluation",
    "OverfittingMonitor",
    "PairedDifference",
    "PredictionFile",
    "ResultsFile",
    "Resumption",
    "SampleImages",
    "SampleRestriction",
    "SaveOnSignal",
    "ShapeBiasEvaluation",
    "ThetaSearch",
    "Throughput",
]
