"""The LightningModules: one a training scheme, on one shared base."""

from lit_robust.memory.classifier import CacheClassifier, Retrieval
from lit_robust.modules.adversarial import AdversarialModule
from lit_robust.modules.advprop import AdvPropModule
from lit_robust.modules.augmix import AugMix, AugMixModule
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.cache import CacheModule
from lit_robust.modules.mixing import CutMix, Mixing, Mixup, MoEx
from lit_robust.modules.optimisation import Optimisation
from lit_robust.modules.standard import StandardModule
from lit_robust.modules.trades import TradesModule

__all__ = [
    "AdvPropModule",
    "AdversarialModule",
    "AugMix",
    "AugMixModule",
    "CacheClassifier",
    "CacheModule",
    "ClassifierModule",
    "CutMix",
    "Mixing",
    "Mixup",
    "MoEx",
    "Optimisation",
    "Retrieval",
    "StandardModule",
    "TradesModule",
]
