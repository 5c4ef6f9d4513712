"""How well a network's scores tell images of unknown classes from those of known ones."""

from collections.abc import Sequence
from typing import Literal, Protocol, cast, get_args

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.batch import Batch, EvaluationSet
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.wandb_record import log_curve
from lit_robust.errors import DataError, UserError
from lit_robust.metrics.class_choice import among_classes
from lit_robust.metrics.ood_detection import OodDetection, ood_score
from lit_robust.results import Example, Result

Score = Literal["max_softmax", "max_logit", "energy", "memory_similarity"]
PUBLISHED: Score = "max_softmax"
OUT_OF_DISTRIBUTION = 1  # The number of the group that is to be found.


class Remembers(Protocol):
    """A module with a memory."""

    def familiarity(self, images: Tensor) -> Tensor:
        """Return how similar each image is to what the memory holds, ``[B]``."""


class OodEvaluation(EvaluationCallback):
    """AUPR, AUROC and FPR95 on ImageNet-O (Hendrycks et al. 2021); out of distribution is positive.

    Scores are taken over the logits of the classes that the set names, ImageNet-O's 200. They are kept: 8 bytes a
    sample and score.

    Args:
        dataset: name of the test loader; its groups are ``in-distribution`` and ``out-of-distribution``.
        scores: what tells how strange an image is: ``max_softmax``, the published protocol, whose results are
            ``aupr``, ``auroc`` and ``fpr95``; ``max_logit``, ``energy``, or ``memory_similarity`` of a cache model,
            whose results have the score's name at their end.
    """

    def __init__(self, dataset: str = "imagenet-o", scores: Sequence[Score] = (PUBLISHED,)) -> None:
        super().__init__(dataset)
        if not scores or len(set(scores)) < len(scores) or not set(scores) <= set(get_args(Score)):
            raise UserError(f"scores is {list(scores)}: name some of {', '.join(get_args(Score))}, each once.")
        self.scores = tuple(scores)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Forget all scores.

        Raises:
            UserError: the set has no images out of distribution, or the module no memory to ask.
        """
        if len(described.groups) != 2:
            raise UserError(f"{self.dataset} has no images out of distribution: name a set such as imagenet-o.")
        if "memory_similarity" in self.scores:
            if not hasattr(module, "familiarity"):
                raise UserError(
                    f"{type(module).__name__} has no memory, whose similarity is to be the score: take "
                    "memory_similarity out of scores, or test a CacheModule."
                )
            if getattr(module.get_submodule("model"), "is_sharded", False):
                raise UserError(
                    "The memory's keys are spread over the ranks, each of which knows only its own: set "
                    "retrieval.sharded to false, or take memory_similarity out of scores."
                )
        self.metrics = {score: OodDetection().to(module.device) for score in self.scores}

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep a batch's scores."""
        assert batch.group is not None
        chosen = among_classes(logits, self.described.classes)
        strange = batch.group == OUT_OF_DISTRIBUTION
        for score, metric in self.metrics.items():
            values = self._unfamiliarity(module, batch) if score == "memory_similarity" else ood_score(chosen, score)
            metric.update(values, strange)

    def _unfamiliarity(self, module: LightningModule, batch: Batch) -> Tensor:
        if not len(batch):
            return torch.zeros(0, device=batch.image.device)
        similarity = cast(Remembers, module).familiarity(batch.image)
        broken = ~similarity.isfinite()
        if broken.any():
            raise DataError(
                f"The memory's similarity of sample {int(batch.index[broken][0])} of {self.dataset} is no finite "
                "number: build the memory again."
            )
        return -similarity

    def compute(self) -> list[Result]:
        """Return the three measures of each score, NaN where the set has images of one kind only."""
        classes = {"decided_among": len(self.described.classes)} if self.described.classes else {}
        results = []
        for score, metric in self.metrics.items():
            computed = metric.compute()
            protocol = {
                **classes,
                "score": score,
                "positive": self.described.groups[OUT_OF_DISTRIBUTION],
                "positives": int(computed["positives"]),
                "negatives": int(computed["negatives"]),
            }
            curve = {"precision_recall": [[round(value, 6) for value in point] for point in computed["curve"].tolist()]}
            end = "" if score == PUBLISHED else f"_{score}"
            for name, extra in (("aupr", curve), ("auroc", {}), ("fpr95", {})):
                results.append(self.result(f"{name}{end}", computed[name], "fraction", {**protocol, **extra}))
        return results

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Log the precision-recall curve of each score."""
        for result in self.results:
            curve = result.protocol.get("precision_recall")
            if curve:
                key = result.key.replace("aupr", "precision_recall")
                log_curve(trainer, key, ("recall", "precision"), [(recall, precision) for recall, precision in curve])
        return []
