"""Adversarial attacks on any callable from images in [0, 1] to logits."""

from lit_robust.attacks.apgd import APGD
from lit_robust.attacks.attack import Attack, AttackResult, Flags, Model, frozen, score
from lit_robust.attacks.autoattack import AutoAttack, AutoAttackResult
from lit_robust.attacks.cache_paper import CachePaperAttack
from lit_robust.attacks.fab import FAB
from lit_robust.attacks.norms import Generators
from lit_robust.attacks.pgd import PGD
from lit_robust.attacks.square import Square
from lit_robust.attacks.sweep import Sweep, Verdicts

__all__ = [
    "APGD",
    "FAB",
    "PGD",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "AutoAttackResult",
    "CachePaperAttack",
    "Flags",
    "Generators",
    "Model",
    "Square",
    "Sweep",
    "Verdicts",
    "frozen",
    "score",
]
