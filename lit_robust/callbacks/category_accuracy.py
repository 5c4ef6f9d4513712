"""Accuracy among categories of classes, where several classes count as one, and where several are right."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.metrics import TopKAccuracy
from lit_robust.metrics.base import on_device
from lit_robust.metrics.shape_bias import category_probabilities
from lit_robust.reference import imagenet_categories, imagenet_wnids, objectnet_classes

RULES = ("class", "mean")


class CategoryAccuracy(EvaluationCallback):
    """How often the category of an image's class is recognised, overall and by category.

    By two rules: ``class``, where the most probable of all classes is one of the category's, as Chen, Agarwal & Nguyen
    2020 score silhouettes; and ``mean``, where of all categories its classes' mean probability is the highest, as
    Geirhos et al. 2019 decide. By the first, chance favours large categories: of ImageNet's 1,000 classes 109 are dogs,
    and one is a knife. So each category's value is given with the whole. Images of no category are not counted.

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


class MergedClassAccuracy(EvaluationCallback):
    """Top-1 and top-5 accuracy where several classes count as one, such as those of a folder of ObjectNet.

    The logit of each is the highest of its classes', and no other class's counts (modestyachts/imagenet-testbed
    ``objectnet.py``, where an answer is right that is any class of the folder). On ImageNet's validation images it is
    what an accuracy on ObjectNet is compared with: the same classes, merged alike (``val-on-objectnet-classes``).

    Args:
        dataset: name of the test loader, whose labels are places among the merged classes, as `ShiftDataModule` gives
            them for folders; or ImageNet's classes, of which those of ObjectNet are taken.
    """

    needs_categories = None

    def __init__(self, dataset: str = "objectnet") -> None:
        super().__init__(dataset)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the sums to zero.

        Raises:
            UserError: the set has neither merged classes nor ImageNet's.
        """
        known = described.protocol.get("num_classes")
        if not described.categories and known not in (None, len(imagenet_wnids())):
            raise UserError(
                f"{self.dataset} has {known} classes, and ObjectNet's are among ImageNet's 1,000: evaluate a set of "
                "those, or one whose classes merge."
            )
        self.merged = [tuple(classes) for classes in (described.categories or objectnet_classes()).values()]
        self.place = {number: place for place, members in enumerate(self.merged) for number in members}
        self.metric = TopKAccuracy((1, 5)).to(module.device)
        self.among_all = TopKAccuracy((1,)).to(module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count the images of the merged classes."""
        labels = batch.label
        if not self.described.categories:
            places = torch.tensor([self.place.get(label, -1) for label in labels.tolist()], device=labels.device).long()
            logits, labels = logits[places >= 0], places[places >= 0]
        chosen = torch.stack([logits[:, on_device(classes, logits.device)].amax(1) for classes in self.merged], 1)
        self.metric.update(chosen, labels)
        # Whether the highest of all logits is one of those, too.
        others = logits.index_fill(1, on_device(tuple(self.place), logits.device), -torch.inf).amax(1, keepdim=True)
        self.among_all.update(torch.cat([chosen, others], 1), labels)

    def compute(self) -> list[Result]:
        """Return ``top1``, ``top5`` and ``top1_all_classes``; on ImageNet ``top1_objectnet_classes`` alone."""
        top1, top5 = self.metric.compute().tolist()
        protocol = {"number_of_categories": len(self.merged), "rule": "the highest logit of the merged classes"}
        if self.described.categories:
            facets = {"measure": "top1", "classes": "all"}
            everything = float(self.among_all.compute())
            return [
                self.share("top1", top1, protocol),
                self.share("top5", top5, protocol),
                self.share("top1_all_classes", everything, {"number_of_categories": len(self.merged)}, facets=facets),
            ]
        with self.metric.sync_context():
            counted = int(self.metric.total)
        facets = {"measure": "top1", "classes": "objectnet"}
        result = self.share("top1_objectnet_classes", top1, protocol, counted, facets=facets)
        # How many images of these classes the whole set has, nobody counted.
        return [replace(result, protocol={k: v for k, v in result.protocol.items() if k != "full_count"})]


class ListedClassAccuracy(EvaluationCallback):
    """Top-1 and top-5 accuracy where several classes are right for an image, as in ImageNet-Hard.

    An answer is right if it is any of the image's classes; all of the network's classes are answers. The images have
    been chosen for being hard, many by the errors of other networks: compare a value with the same set's alone.

    Args:
        dataset: name of the test loader, whose categories are lists of right classes, as `ShiftDataModule` gives them
            for ``classes: listed``.
    """

    needs_categories = True

    def __init__(self, dataset: str = "imagenet-hard") -> None:
        super().__init__(dataset)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the sums to zero.

        Raises:
            UserError: the set's categories are no lists of right classes.
        """
        if "right" not in described.protocol:
            raise UserError(f"{self.dataset} lists no right classes: set its `classes` to listed.")
        lists = [torch.tensor(list(classes)) for classes in described.categories.values()]
        wrong = torch.ones(len(lists), 1 + max(int(classes.max()) for classes in lists), dtype=torch.bool)
        for place, classes in enumerate(lists):
            wrong[place, classes] = False
        self.wrong = wrong.to(module.device)
        self.metric = TopKAccuracy((1, 5)).to(module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch."""
        # The best of the right classes stands for all of them: above it stand wrong ones alone.
        some = logits[:, : self.wrong.shape[1]]
        best = some.masked_fill(self.wrong[batch.label], -torch.inf).argmax(1)
        self.metric.update(logits, best)

    def compute(self) -> list[Result]:
        """Return ``top1`` and ``top5``."""
        protocol = {"rule": "any of an image's listed classes is right"}
        values = self.metric.compute().tolist()
        return [self.share(name, value, protocol) for name, value in zip(("top1", "top5"), values, strict=True)]
