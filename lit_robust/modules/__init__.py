"""The LightningModules: one a training scheme, on one shared base."""

from lit_robust.modules.adversarial import AdversarialModule
from lit_robust.modules.advprop import AdvPropModule
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation
from lit_robust.modules.standard import StandardModule

__all__ = ["AdvPropModule", "AdversarialModule", "ClassifierModule", "Optimisation", "StandardModule"]
