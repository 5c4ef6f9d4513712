"""Which temperature (theta) of a memory's similarity is best: accuracies at several thetas in one pass."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from lit_robust.attacks import Attack
from lit_robust.callbacks.adversarial import CLEAN, AttackTally, check_goes_on, random_of
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.plain import is_spread
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision
from lit_robust.core.results import Result


class AnswersAt(Protocol):
    """A memory's retrieval that can be asked at several thetas at once."""

    def at(self, queries: Tensor, thetas: Sequence[float]) -> Tensor:
        """Return log-probabilities ``[len(thetas), B, num_classes]``."""


class ThetaSearch(EvaluationCallback):
    """Top-1 accuracy of a cache model at several thetas, on clean images or on gray-box adversarial ones.

    Orhan and Lake (2019, section 3.1) search 9 values from 10 to 90 in the gray-box setting and keep the best for all
    others; set it as ``model.retrieval.theta``. Search on images that are not those of the final test, or say so.

    Args:
        attack: made against the backbone, once for all thetas; null searches on clean images. An image that the
            backbone misclassifies clean is attacked all the same, so the attack may not end where the backbone errs.
        thetas: to be tried, each finite and above 0, in any order; no two the same to six digits.
        dataset: name of the test loader.
    """

    def __init__(
        self,
        attack: Attack | None = None,
        thetas: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
        dataset: str = "imagenet",
    ) -> None:
        super().__init__(dataset)
        if not thetas or not all(math.isfinite(theta) and theta > 0 for theta in thetas):
            raise UserError(f"The thetas are {list(thetas)}: give at least one, each finite and above 0.")
        if len({f"{theta:g}" for theta in thetas}) < len(thetas):
            raise UserError(
                f"The thetas are {list(thetas)}, of which two are the same to six digits, and so the names of their "
                "results: give each once."
            )
        if attack is not None:
            check_goes_on(attack, "gray-box")
        self.attack = attack
        self.tally: AttackTally | None = None
        self.thetas = sorted(float(theta) for theta in thetas)

    @property
    def stem(self) -> str:
        """What the results' names begin with."""
        return "top1" if self.attack is None else "gray_box_top1"

    @property
    def label(self) -> str:
        """What tells this evaluation's results from another's."""
        return f"theta search, {self.stem} on {self.dataset}"

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where the module has no memory, or none that is whole on each rank."""
        super().check(trainer)
        module = trainer.lightning_module
        if not hasattr(module, "retrieval"):
            raise UserError(f"ThetaSearch is for a CacheModule, and this is a {type(module).__name__}: take it out.")
        if is_spread(trainer):
            raise UserError("Several thetas are tried on keys that are not spread: set retrieval.sharded to false.")

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the counts to zero."""
        self.trainer = module.trainer
        self.correct = torch.zeros(len(self.thetas), dtype=torch.int64, device=module.device)
        if self.attack is not None:
            self.tally = AttackTally(self.attack, (CLEAN,), module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch."""
        model: Any = module.get_submodule("model")
        images = batch.image
        if self.attack is not None and self.tally is not None and len(images):
            generators = [random_of(number) for number in batch.index.tolist()]
            backbone = cast(nn.Module, model.backbone)
            found = self.attack(backbone, images, batch.label, generator=generators)
            self.tally.add(found)
            images = found.images
        with torch.no_grad(), full_precision(images.device.type):
            answers = cast(AnswersAt, model.retrieval).at(model.queries(images), self.thetas).argmax(2)
        self.correct += (answers == batch.label).sum(1)

    def compute(self) -> list[Result]:
        """Return the accuracy at each theta, and the theta of the best; of equal ones the smallest."""
        correct = self.trainer.strategy.reduce(self.correct.clone(), reduce_op="sum").tolist()
        protocol: dict[str, Any] = {"attack": "none" if self.attack is None else self.attack.protocol()}
        counted, warnings = ({}, []) if self.tally is None else self.tally.reduced(self.trainer.strategy)
        protocol |= counted
        threat = {} if self.attack is None else {"threat_model": "gray-box"}
        axes = {"measure": "top1", "series": f"{self.stem}_theta", **threat}
        results = [
            self.share(
                f"{self.stem}_theta_{theta:g}",
                right / self.described.count,
                protocol,
                facets={**axes, "theta": theta},
                warnings=warnings,
            )
            for theta, right in zip(self.thetas, correct, strict=True)
        ]
        best, axes = self.thetas[correct.index(max(correct))], {"measure": "best_theta", **threat}
        name = f"best_theta_{self.stem}"
        return [*results, self.result(name, best, "theta", protocol, facets=axes, warnings=warnings)]
