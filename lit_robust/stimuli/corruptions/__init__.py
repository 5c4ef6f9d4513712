"""The 19 corruptions of ImageNet-C, seeded and in batches."""

from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from lit_robust.stimuli.corruptions.frost import FrostPictures
from lit_robust.stimuli.corruptions.registry import corrupt

__all__ = ["ALL_CORRUPTIONS", "CORRUPTIONS", "EXTRA_CORRUPTIONS", "SEVERITIES", "FrostPictures", "corrupt"]
