"""Accuracy among categories of classes, on images whose labels are classes."""

from collections.abc import Mapping, Sequence

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.metrics.shape_bias import category_probabilities
from lit_robust.reference import imagenet_categories

RULES = ("class", "mean")


class CategoryAccuracy(EvaluationCallback):
    """How often the category of an image's class is recognised, overall and by category.

    By two rules: ``class``, where the most probable of all classes is one of the category's, as Chen, Agarwal & Nguyen
    2020 score silhouettes; and ``mean``, where of all categories its classes' mean probability is the highest, as
    Geirhos et al. 2019 decide. By the first, chance favours large categories: of ImageNet's 1,000 classes 109 are dogs,
    and one is a knife. So each category's value stands beside the whole. Images of no category are not counted.

    Args:
        dataset: name of the test loader, with classes as labels.
        categories: name to class numbers; null for the 16 of Geirhos et al. in ImageNet's classes.
    """

    def __init__(self, dataset: str, categories: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__(dataset)
        self.categories = imagenet_categories() if categories is None else dict(categories)
        classes = [number for members in self.categories.values() for number in members]
        if not classes or not all(self.categories.values()) or len(set(classes)) < len(classes) or min(classes) < 0:
            raise UserError("categories are not name to class numbers: give each one classes of its own, from 0.")

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the counts to zero."""
        names = list(self.categories)
        largest = max(number for members in self.categories.values() for number in members)
        self.category = torch.full((largest + 1,), -1, device=module.device)
        for place, name in enumerate(names):
            self.category[torch.tensor(list(self.categories[name]), device=module.device)] = place
        # Right by the class, right by the mean, and all images, of each category.
        self.counts = torch.zeros(len(names), 3, dtype=torch.int64, device=module.device)

    def _of(self, classes: Tensor) -> Tensor:
        known = classes < len(self.category)
        return torch.where(known, self.category[classes.clamp(max=len(self.category) - 1)], -1)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch."""
        wanted = self._of(batch.label)
        inside = wanted >= 0
        wanted, logits = wanted[inside], logits[inside]
        by_class = self._of(logits.argmax(1)) == wanted
        by_mean = category_probabilities(logits, self.categories).argmax(1) == wanted
        columns = torch.stack([by_class, by_mean, torch.ones_like(by_class)], 1).long()
        self.counts.index_add_(0, wanted, columns)

    def compute(self) -> list[Result]:
        """Return ``category_accuracy_class`` and ``category_accuracy_mean``, and those of each category.

        Raises:
            UserError: no image is of a category.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts)
        counts = self.counts.cpu()
        counted = int(counts[:, 2].sum())
        if not counted:
            raise UserError(f"No image of {self.dataset} is of a category: give the categories of its classes.")
        results = []
        for column, rule in enumerate(RULES):
            protocol = {"number_of_categories": len(self.categories), "rule": rule}
            name = f"category_accuracy_{rule}"
            facets = {"measure": "category_accuracy", "series": name, "variant": rule}
            results.append(self._fraction(name, counts.sum(0), column, protocol, facets))
            for category, row in zip(self.categories, counts, strict=True):
                if row[2]:
                    own = {**facets, "category": category}
                    results.append(self._fraction(f"{name}_{category}", row, column, protocol, own))
        return results

    def _fraction(
        self, name: str, row: Tensor, column: int, protocol: Mapping[str, object], facets: Mapping[str, object]
    ) -> Result:
        return self.share(name, int(row[column]) / int(row[2]), protocol, int(row[2]), facets)
