"""How near a network's decisions are to people's on the sets of model-vs-human (Geirhos et al. 2021)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lit_robust.callbacks.error_consistency import HUMAN, NOT_SEEN, ErrorConsistencyEvaluation
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.metrics import category_probabilities
from lit_robust.metrics.human_comparison import MEASURES, closeness, closeness_draws, pairs_of, tables_with
from lit_robust.metrics.shape_bias import Aggregation
from lit_robust.reference import human_conditions


class HumanComparison(ErrorConsistencyEvaluation):
    """Accuracy difference, observed and error consistency with people, in each condition and over those that count.

    The means are over the conditions that model-vs-human takes into its own: not those without a distortion, nor those
    in which people are right in less than 20 %. Of a set that is not theirs all conditions count. The same measures
    between people stand in the protocol, under ``humans``.

    Args:
        decisions: CSV file of recorded decisions, or a folder of such files, as ``raw-data/<set>`` of
            bethgelab/model-vs-human; observers named ``subject-...`` count.
        dataset: name of the test loader, such as ``contrast``.
        aggregation: how a category's probability follows from its classes': ``mean``, ``max`` or ``sum``.
    """

    def __init__(self, decisions: str | Path, dataset: str, aggregation: Aggregation = "mean") -> None:
        super().__init__(decisions, dataset, aggregation)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Read the decisions, and forget all answers.

        Raises:
            UserError: the decisions cannot be read, or no person's is of an image of the set.
        """
        super().prepare(module, described)
        people = [place for place, name in enumerate(self.observers) if name.startswith(HUMAN)]
        if not people:
            raise UserError(
                f"{self.decisions} has no person's decisions on {self.dataset}, only those of "
                f"{', '.join(self.observers)}: give model-vs-human's files of subjects, raw-data/{self.dataset}."
            )
        self.decided = self.decided[people]
        # Whether the answer to each image is right, its label and its condition; -1 before it came.
        self.answered = torch.full((3, self.decided.shape[1]), -1, dtype=torch.int64, device=module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep a batch's answers."""
        answers = category_probabilities(logits, self.described.categories, self.aggregation).argmax(1)
        conditions = torch.zeros_like(batch.label) if batch.group is None else batch.group
        self.answered[:, batch.index] = torch.stack([(answers == batch.label).long(), batch.label, conditions])

    def compute(self) -> list[Result]:
        """Return the measures over the conditions that count, and in each condition where there are several.

        They are ``accuracy_among_categories``, ``accuracy_difference``, ``observed_consistency`` and
        ``error_consistency``, and the same with ``_<condition>``.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.answered, torch.distributed.ReduceOp.MAX)
        right, labels, conditions = self.answered.cpu()
        came = right >= 0
        decided = self.decided.cpu()
        observed = torch.where(decided == NOT_SEEN, NOT_SEEN, (decided == labels).long())[:, came]
        right, conditions = right[came], conditions[came]
        names = list(self.described.groups) or ["0"]
        counting = human_conditions(self.dataset, in_mean=True) or names
        chosen = [place for place, name in enumerate(names) if name in counting]
        settings = {
            "aggregation": self.aggregation,
            "decisions": self.decisions.name,
            "decisions_sha256": self.digest,
            "number_of_people": len(decided),
        }
        if len(names) == 1:
            return self._over(right, observed, conditions, [0], settings)
        results = self._over(
            right, observed, conditions, chosen, {**settings, "conditions": [names[n] for n in chosen]}
        )
        for place, name in enumerate(names):
            results += self._over(right, observed, conditions, [place], settings, name)
        return results

    def _over(
        self,
        right: Tensor,
        observed: Tensor,
        conditions: Tensor,
        chosen: list[int],
        settings: Mapping[str, Any],
        condition: str = "",
    ) -> list[Result]:
        """Return the measures over some conditions; of a single one by its name."""
        inside = torch.isin(conditions, torch.tensor(chosen, dtype=torch.int64))
        if not bool(inside.any()):
            return []
        right, observed = right[inside], observed[:, inside]
        numbers = torch.searchsorted(torch.tensor(chosen), conditions[inside])
        count, images = len(chosen), int(inside.sum())
        means = closeness(tables_with(right, observed, numbers, count)).means()
        people = float((observed == 1).sum() / (observed >= 0).sum())
        between = closeness(pairs_of(observed, numbers, count)).means() if len(observed) > 1 else {}
        humans = {"accuracy": people, **{name: float(value) for name, value in between.items()}}
        protocol = {**settings, "humans": humans}
        suffix = "_" + re.sub(r"\W+", "_", condition) if condition else ""
        axes = {"condition": condition} if condition else {}
        accuracy = "accuracy_among_categories"
        draws = closeness_draws(right, observed, numbers, count, f"people on {self.dataset}{suffix}")
        facets = {"measure": accuracy, **axes}
        results = [self.share(f"{accuracy}{suffix}", right.double().mean(), protocol, images, facets)]
        for name in MEASURES:
            facets, bounds = {"measure": name, **axes}, (-1.0 if name == "error_consistency" else 0.0, 1.0)
            value = float(means[name])
            results.append(
                self.resampled(f"{name}{suffix}", value, protocol, draws[name], images, facets, bounds=bounds)
            )
        return results
