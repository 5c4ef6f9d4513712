"""AutoAttack (Croce and Hein 2020): four attacks without settings to tune, each on what withstood those before."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_robust.attacks.apgd import APGD
from lit_robust.attacks.attack import AttackResult, Flags, Model, check_eps, clean_logits
from lit_robust.attacks.fab import FAB
from lit_robust.attacks.losses import LOSSES
from lit_robust.attacks.norms import Generators
from lit_robust.attacks.square import Square
from lit_robust.attacks.survivors import NormName, Record, SurvivorAttack
from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError, check_choice

Version = Literal["standard", "rand"]

WITHSTOOD = -1
CLEAN = 0

# The largest difference of two answers of one network, of ``checks.py`` of fra31/auto-attack.
SAME = 1e-4

# The difference of logits ratio takes three logits, the targeted one four.
LEAST_CLASSES: Mapping[Version, int] = {"standard": 4, "rand": 3}


@dataclass(frozen=True)
class AutoAttackResult(AttackResult):
    """What an ``AttackResult`` says, and what broke each image.

    Attributes:
        code: int64 ``[B]``, place in ``names`` of what broke each image; -1 where nothing did.
        names: ``clean``, for images misclassified without an attack, then the attacks in their order.
        queries: int64 ``[B]``, forward passes of each image in Square.
        randomised: how many images the network answered differently a second time; 0 in version ``rand``.
    """

    code: Tensor
    names: tuple[str, ...]
    queries: Tensor
    randomised: int

    @property
    def flags(self) -> Flags:
        """Signs that the verdicts may be too good, those that the cascade alone sees included."""
        gained = int((self.code == self.names.index("square")).sum()) if "square" in self.names else 0
        return replace(super().flags, randomised=self.randomised, gained_by_square=gained)


@dataclass(frozen=True)
class AutoAttack(SurvivorAttack):
    """The cascade of Croce and Hein 2020, with the settings of RobustBench (fra31/auto-attack, ``autoattack.py``).

    Images misclassified clean are not attacked. Every verdict is in fp32. With a generator for each image its result
    depends neither on the other images nor on what becomes of them. ``loss`` of a result is the margin at the returned
    image, which is the first that broke, or of those that a search returned the one of highest margin.

    Attributes:
        norm: ``l2`` or ``linf``.
        eps: radius in [0, 1] pixel units.
        version: ``standard``: APGD on cross-entropy, APGD on the difference of logits ratio towards 9 classes, FAB
            towards 9 classes, Square with 5,000 queries. ``rand``, for networks with random numbers of their own: APGD
            on cross-entropy and on the difference of logits ratio, each gradient a mean of 20.

    Raises:
        UserError: a setting is out of range; on a call, too few classes for the difference of logits ratio: 4 for
            ``standard``, 3 for ``rand``.
    """

    norm: NormName = "linf"
    eps: float = 8 / 255
    version: Version = "standard"

    def __post_init__(self) -> None:
        check_choice("AutoAttack norm", self.norm, get_args(NormName))
        check_choice("AutoAttack version", self.version, get_args(Version))
        check_eps("AutoAttack eps", self.eps, self.norm)

    def attacks(self) -> Mapping[str, SurvivorAttack]:
        """Return the attacks by name, in their order."""
        norm, eps = self.norm, self.eps
        if self.version == "rand":
            return {
                "apgd-ce": APGD(norm=norm, eps=eps, draws=20),
                "apgd-dlr": APGD(norm=norm, eps=eps, loss="dlr", draws=20),
            }
        return {
            "apgd-ce": APGD(norm=norm, eps=eps),
            "apgd-t": APGD(norm=norm, eps=eps, loss="dlr", targets=9),
            "fab-t": FAB(norm=norm, eps=eps),
            "square": Square(norm=norm, eps=eps),
        }

    def __call__(
        self, model: Model, images: Numbers, labels: Numbers, *, generator: Generators | None = None
    ) -> AutoAttackResult:
        """Attack and score; see ``Attack``. Waits for the accelerator at each step."""
        names = tuple(self.attacks())
        with self._opened(model, images, labels, LOSSES["margin"], generator) as record:
            randomised = 0
            if self.version == "standard" and len(record.labels):
                randomised = count_randomised(model, record.clean, record.logits)
            code = self._cascade(record, generator)
        return AutoAttackResult(
            **vars(record.result()), code=code, names=("clean", *names), queries=record.queries, randomised=randomised
        )

    def explore(self, record: Record, generator: Generators | None) -> None:
        """Run the attacks in turn; see ``SurvivorAttack``."""
        self._cascade(record, generator)

    def _cascade(self, record: Record, generator: Generators | None) -> Tensor:
        """Run the attacks in turn and return what broke each image, int64 ``[B]`` as in ``AutoAttackResult``."""
        classes, least = record.logits.shape[1], LEAST_CLASSES[self.version]
        if classes < least and len(record.labels):
            raise UserError(
                f"AutoAttack {self.version} compares {least} logits, the network has {classes}: use APGD with loss "
                "cross_entropy, FAB and Square, one after another."
            )
        code = torch.where(record.broken, CLEAN, WITHSTOOD)
        for number, attack in enumerate(self.attacks().values(), CLEAN + 1):
            attack.explore(record, generator)
            code = torch.where(record.broken & (code == WITHSTOOD), number, code)
        return code

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values, those of the attacks included."""
        attacks = {name: attack.protocol() for name, attack in self.attacks().items()}
        return super().protocol() | {"attacks": attacks, "verdict": "broken by any of the attacks"}


def count_randomised(model: Model, images: Tensor, logits: Tensor) -> int:
    """Return how many images another fp32 forward pass answers otherwise than ``logits`` ``[B, num_classes]``."""
    again = clean_logits(model, images)
    difference = torch.linalg.vector_norm(_unit(again) - _unit(logits), dim=1)
    return int(((difference > SAME) | (again.argmax(1) != logits.argmax(1))).sum())


def _unit(logits: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    return logits / (length + 1e-10)
