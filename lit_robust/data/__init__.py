"""Data modules: shards on disk to batches of images, one data module a data set."""

from lit_robust.data.cue_conflict import CueConflictDataModule
from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.module import RobustDataModule, ShardDataModule
from lit_robust.data.suite import RobustnessSuite
from lit_robust.data.transforms import EvaluationCrop, TrainingCrop

__all__ = [
    "CueConflictDataModule",
    "EvaluationCrop",
    "ImageNetDataModule",
    "RobustDataModule",
    "RobustnessSuite",
    "ShardDataModule",
    "TrainingCrop",
]
