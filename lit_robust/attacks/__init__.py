"""Adversarial attacks on any callable from images in [0, 1] to logits."""

from lit_robust.attacks.attack import Attack, AttackResult, Model
from lit_robust.attacks.draws import Generators
from lit_robust.attacks.frozen import frozen
from lit_robust.attacks.pgd import PGD

__all__ = ["PGD", "Attack", "AttackResult", "Generators", "Model", "frozen"]
