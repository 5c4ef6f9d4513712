"""The 19 corruptions of ImageNet-C, seeded and in batches."""

from lit_robust.stimuli.corruptions.frost import FrostPictures
from lit_robust.stimuli.corruptions.registry import (
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
    corrupt,
)

__all__ = ["ALL_CORRUPTIONS", "CORRUPTIONS", "EXTRA_CORRUPTIONS", "SEVERITIES", "FrostPictures", "corrupt"]
