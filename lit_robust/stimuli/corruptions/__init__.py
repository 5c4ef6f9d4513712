"""The 19 corruptions of ImageNet-C, seeded and in batches."""

from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from lit_robust.stimuli.corruptions.registry import corrupt
from lit_robust.stimuli.corruptions.weather import FrostPictures

__all__ = ["ALL_CORRUPTIONS", "CORRUPTIONS", "EXTRA_CORRUPTIONS", "SEVERITIES", "FrostPictures", "corrupt"]
