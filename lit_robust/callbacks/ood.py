"""How well a network's scores tell images of unknown classes from those of known ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, cast, get_args

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.display import log_curve
from lit_robust.callbacks.evaluation import LIMITS, EvaluationCallback, left_out
from lit_robust.callbacks.plain import data_of, is_spread
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.results import Example, Result
from lit_robust.metrics.base import among_classes
from lit_robust.metrics.ood_detection import OodDetection, ood_score
from lit_robust.metrics.resampling import ranking_draws

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
        scores: how the unfamiliarity of an image is scored: ``max_softmax``, the published protocol, whose results are
            ``aupr``, ``auroc`` and ``fpr95``; ``max_logit``, ``energy``, or ``memory_similarity`` of a cache model,
            whose results have the score's name at their end.
        known: name of the test loader whose images of those classes are in distribution, such as ``imagenet``, so that
            no image is read twice; null where ``dataset`` has images of both kinds. Where it is named, all images of a
            ``dataset`` without groups, such as a plain loader, are out of distribution.
    """

    def __init__(
        self,
        dataset: str = "imagenet-o",
        scores: Sequence[Score] = (PUBLISHED,),
        known: str | None = None,
    ) -> None:
        super().__init__(dataset)
        if not scores or len(set(scores)) < len(scores) or not set(scores) <= set(get_args(Score)):
            raise UserError(f"scores is {list(scores)}: name some of {', '.join(get_args(Score))}, each once.")
        self.scores = tuple(scores)
        self.known = known

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the test loaders that it follows."""
        return (self.dataset,) if self.known is None else (self.dataset, self.known)

    def lacks(self, missing: Mapping[str, str]) -> str:
        """Return which of its sets is not there; empty where both are."""
        lacking = next((name for name in self.sets if name in missing), None)
        return "" if lacking is None else missing[lacking]

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where images of a kind are in no set or in both, or no memory is there to ask."""
        super().check(trainer)
        sets: Mapping[str, EvaluationSet] = data_of(trainer).evaluation_sets
        module = trainer.lightning_module
        described = sets[self.dataset]
        if self.known is not None and self.known not in sets:
            raise UserError(
                f"{self.label} takes images of known classes from {self.known}, which the data have not: add that data "
                "module, or set known to null."
            )
        if self.known is not None and "in_distribution" in described.protocol:
            raise UserError(
                f"{self.label} takes images of known classes from {self.known}, but {self.dataset} holds some itself: "
                "set in_distribution of that data module, or known, to null."
            )
        if len(described.groups) != 2 and (described.groups or self.known is None):
            raise UserError(f"{self.dataset} has no images out of distribution: name a set such as imagenet-o.")
        if "memory_similarity" in self.scores:
            if not hasattr(module, "familiarity"):
                raise UserError(
                    f"{type(module).__name__} has no memory, whose similarity is to be the score: take "
                    "memory_similarity out of scores, or test a CacheModule."
                )
            if is_spread(trainer):
                raise UserError(
                    "The memory's keys are spread over the ranks, each of which knows only its own: set "
                    "retrieval.sharded to false, or take memory_similarity out of scores."
                )

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Forget all scores."""
        self.metrics = {score: OodDetection().to(module.device) for score in self.scores}

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep a batch's scores."""
        is_out = torch.ones_like(batch.valid) if batch.group is None else batch.group == OUT_OF_DISTRIBUTION
        self._count(module, batch, logits, is_out)

    def update_from(self, dataset: str, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep the scores of a batch of its set, or of the images of known classes in the other one."""
        if dataset == self.dataset:
            self.update(module, batch, logits)
            return
        classes = torch.tensor(self.described.classes, device=batch.label.device)
        wanted = torch.isin(batch.label, classes) if self.described.classes else torch.ones_like(batch.valid)
        self._count(module, batch.select(wanted), logits[wanted], torch.zeros_like(batch.valid[wanted]))

    def _count(self, module: LightningModule, batch: Batch, logits: Tensor, is_out: Tensor) -> None:
        chosen = among_classes(logits, self.described.classes)
        for score, metric in self.metrics.items():
            values = self._unfamiliarity(module, batch) if score == "memory_similarity" else ood_score(chosen, score)
            metric.update(values, is_out)

    def _unfamiliarity(self, module: LightningModule, batch: Batch) -> Tensor:
        if not len(batch):
            return torch.zeros(0, device=batch.image.device)
        similarity = cast(Remembers, module).familiarity(batch.image)
        broken = ~similarity.isfinite()
        if broken.any():
            raise DataError(
                f"The memory's similarity of sample {int(batch.index[broken][0])} of {self.dataset} is not a finite "
                "number: build the memory again."
            )
        return -similarity

    def compute(self) -> list[Result]:
        """Return the three measures of each score, NaN where the set has images of one kind only."""
        classes = {"decided_among": len(self.described.classes)} if self.described.classes else {}
        results = []
        for score, metric in self.metrics.items():
            computed = metric.compute()
            positives, negatives = int(computed["positives"]), int(computed["negatives"])
            protocol = {
                **classes,
                "score": score,
                "positive": self.described.groups[OUT_OF_DISTRIBUTION] if self.described.groups else self.dataset,
                "positives": positives,
                "negatives": negatives,
            }
            with metric.sync_context():
                draws = ranking_draws(*metric.kept(), f"{score} on {self.dataset}")
            curve = {"precision_recall": [[round(value, 6) for value in point] for point in computed["curve"].tolist()]}
            warnings = []
            if not (positives and negatives):
                curve, kind = {}, "of a class that is known" if positives else "an anomaly"
                warnings.append(f"none of the images that were tested is {kind}")
            end = "" if score == PUBLISHED else f"_{score}"
            for name, extra in (("aupr", curve), ("auroc", {}), ("fpr95", {})):
                own_protocol = {**protocol, **extra}
                facets = {"measure": name, "score": score}
                images = positives + negatives
                result = self.resampled(
                    f"{name}{end}", computed[name], own_protocol, draws.get(name), images, facets, warnings
                )
                results.append(result if self.known is None else self._with_known(result, negatives))
        return results

    def _with_known(self, result: Result, count: int) -> Result:
        """Return a result whose images in distribution, ``count`` of them, are another set's: they have the labels."""
        assert self.known is not None
        known = self.described_sets[self.known]
        classes = {name: known.protocol[name] for name in ("num_classes",) if name in known.protocol}
        facts = {name: value for name, value in known.protocol.items() if name not in LIMITS}
        own_protocol = {**result.protocol, **classes, "in_distribution": {"count": count, **facts}}
        own_protocol |= left_out(self.described, known)
        if "full_count" in own_protocol:
            own_protocol["full_count"] += count
        if known.protocol.get("partial"):
            # How many images of those classes the whole set has, nobody counted.
            own_protocol.pop("full_count", None)
        return replace(result, protocol=own_protocol)

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Log the precision-recall curve of each score."""
        for result in self.results:
            curve = result.protocol.get("precision_recall")
            if curve:
                score = result.facets["score"]
                end = "" if score == PUBLISHED else f"_{score}"
                key = f"test/{self.dataset}/precision_recall{end}"
                log_curve(trainer, key, ("recall", "precision"), [(recall, precision) for recall, precision in curve])
        return []
