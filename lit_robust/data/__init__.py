"""Data modules: images on disk or behind a URL to batches, one data module a data set.

A name is imported when it is first asked for: worker processes and tools that need no Lightning do not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_robust.data.cue_conflict import CueConflictDataModule as CueConflictDataModule
    from lit_robust.data.derived import DerivedDataModule as DerivedDataModule
    from lit_robust.data.derived import StimulusDataModule as StimulusDataModule
    from lit_robust.data.folders import ImageFolderDataModule as ImageFolderDataModule
    from lit_robust.data.human_stimuli import HumanStimuliDataModule as HumanStimuliDataModule
    from lit_robust.data.imagenet import ImageNetDataModule as ImageNetDataModule
    from lit_robust.data.imagenet import RestrictedImageNetDataModule as RestrictedImageNetDataModule
    from lit_robust.data.imagenet import StylizedImageNetDataModule as StylizedImageNetDataModule
    from lit_robust.data.imagenet_a_and_o import ImageNetADataModule as ImageNetADataModule
    from lit_robust.data.imagenet_a_and_o import ImageNetODataModule as ImageNetODataModule
    from lit_robust.data.imagenet_c import ImageNetCDataModule as ImageNetCDataModule
    from lit_robust.data.imagenet_c import ImageNetCLikeDataModule as ImageNetCLikeDataModule
    from lit_robust.data.loading.splits import Reading as Reading
    from lit_robust.data.loading.transforms import EvaluationCrop as EvaluationCrop
    from lit_robust.data.loading.transforms import TrainingCrop as TrainingCrop
    from lit_robust.data.module import RobustDataModule as RobustDataModule
    from lit_robust.data.module import ShardDataModule as ShardDataModule
    from lit_robust.data.module import SingleSetDataModule as SingleSetDataModule
    from lit_robust.data.shift import ShiftDataModule as ShiftDataModule
    from lit_robust.data.suite import JoinedDataModule as JoinedDataModule
    from lit_robust.data.suite import RobustnessSuite as RobustnessSuite

FILES = {
    "CueConflictDataModule": "cue_conflict",
    "DerivedDataModule": "derived",
    "EvaluationCrop": "loading.transforms",
    "HumanStimuliDataModule": "human_stimuli",
    "ImageFolderDataModule": "folders",
    "ImageNetADataModule": "imagenet_a_and_o",
    "ImageNetCDataModule": "imagenet_c",
    "ImageNetCLikeDataModule": "imagenet_c",
    "ImageNetDataModule": "imagenet",
    "ImageNetODataModule": "imagenet_a_and_o",
    "JoinedDataModule": "suite",
    "Reading": "loading.splits",
    "RestrictedImageNetDataModule": "imagenet",
    "RobustDataModule": "module",
    "RobustnessSuite": "suite",
    "ShardDataModule": "module",
    "ShiftDataModule": "shift",
    "SingleSetDataModule": "module",
    "StimulusDataModule": "derived",
    "StylizedImageNetDataModule": "imagenet",
    "TrainingCrop": "loading.transforms",
}
__all__ = list(FILES)


def __getattr__(name: str) -> Any:
    if name not in FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{FILES[name]}"), name)


def load_all() -> None:
    """Import every data module, so that the command line knows them by their short names, too."""
    for name in FILES:
        __getattr__(name)
