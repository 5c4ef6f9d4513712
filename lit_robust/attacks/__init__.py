"""Adversarial attacks on any callable from images in [0, 1] to logits."""

from lit_robust.attacks.attack import Attack, AttackResult, Model
from lit_robust.attacks.cache_paper import CachePaperAttack
from lit_robust.attacks.draws import Generators
from lit_robust.attacks.frozen import frozen
from lit_robust.attacks.pgd import PGD
from lit_robust.attacks.sweep import Sweep, Verdicts

__all__ = ["PGD", "Attack", "AttackResult", "CachePaperAttack", "Generators", "Model", "Sweep", "Verdicts", "frozen"]
