"""Accuracy on images as they are, and whether confidence is accuracy."""

from dataclasses import replace
from typing import Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.plain import data_of
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.metrics import TopKAccuracy
from lit_robust.metrics.base import among_classes
from lit_robust.metrics.calibration import BIN_SIZE, ECE_BINS, Calibration
from lit_robust.metrics.resampling import calibration_draws
from lit_robust.reference import imagenet_subset, imagenet_wnids

TOP_K = (1, 5)


class CleanAccuracy(EvaluationCallback):
    """Top-1 and top-5 accuracy of a test set.

    Where the set says among which classes a decision is taken, as ImageNet-A does of its 200, the other classes'
    logits are left out, as in all published values; ``top1_all_classes`` is the top-1 accuracy with them.

    Args:
        dataset: name of the test loader.
    """

    def __init__(self, dataset: str = "imagenet") -> None:
        super().__init__(dataset)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the sums to zero."""
        self.metric = TopKAccuracy(TOP_K, described.classes).to(module.device)
        self.unrestricted = TopKAccuracy((1,)).to(module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch."""
        self.metric.update(logits, batch.label)
        if self.described.classes:
            self.unrestricted.update(logits, batch.label)

    def compute(self) -> list[Result]:
        """Return ``top1`` and ``top5``; ``top1_all_classes`` where a decision is taken among some classes."""
        classes = self.described.classes
        protocol = {"decided_among": len(classes)} if classes else {}
        results = [
            self.share(f"top{k}", value, protocol) for k, value in zip(TOP_K, self.metric.compute(), strict=True)
        ]
        if classes:
            facets = {"measure": "top1", "classes": "all"}
            results.append(self.share("top1_all_classes", self.unrestricted.compute(), {}, facets=facets))
        return results


class ClassSubsetAccuracy(EvaluationCallback):
    """Top-1 accuracy on the images, and among the logits, of some of ImageNet's classes.

    On the validation images it is what an accuracy on ImageNet-A is compared with: the same 200 classes, without the
    selection of hard images (modestyachts/imagenet-testbed, ``val-on-imagenet-a-classes``).

    Args:
        dataset: name of the test loader, of ImageNet's 1,000 classes.
        subset: whose 200 classes.
    """

    def __init__(
        self, dataset: str = "imagenet", subset: Literal["imagenet-a", "imagenet-o", "imagenet-r"] = "imagenet-a"
    ) -> None:
        super().__init__(dataset)
        self.subset = subset
        self.classes = imagenet_subset(subset)

    @property
    def label(self) -> str:
        """What tells this evaluation's results from another's."""
        return f"{type(self).__name__} of {self.subset} on {self.dataset}"

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where the set has other classes than ImageNet."""
        super().check(trainer)
        known = data_of(trainer).evaluation_sets[self.dataset].protocol.get("num_classes")
        if known not in (None, len(imagenet_wnids())):
            raise UserError(
                f"{self.dataset} has {known} classes, and {self.subset}'s 200 are not among them: evaluate a set of "
                "ImageNet's 1,000, or take ClassSubsetAccuracy out."
            )

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the sums to zero."""
        self.metric = TopKAccuracy((1,), self.classes).to(module.device)
        self.wanted = torch.tensor(self.classes, device=module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count the images of the chosen classes."""
        inside = torch.isin(batch.label, self.wanted)
        self.metric.update(logits[inside], batch.label[inside])

    def compute(self) -> list[Result]:
        """Return ``top1_imagenet_a_classes``, or that of another subset's; its count is the images of those classes."""
        name = f"top1_{self.subset.replace('-', '_')}_classes"
        value = self.metric.compute()
        with self.metric.sync_context():
            counted = int(self.metric.total)
        facets = {"measure": "top1", "classes": self.subset}
        result = self.share(name, value, {"decided_among": len(self.classes)}, counted, facets=facets)
        # How many images of these classes the whole set has, nobody counted.
        return [replace(result, protocol={k: v for k, v in result.protocol.items() if k != "full_count"})]


PUBLISHED = "rms_calibration_error_published"


class CalibrationEvaluation(EvaluationCallback):
    """RMS calibration error and AURRA (Hendrycks et al. 2021), and ECE, of the most probable class.

    Where the set says among which classes a decision is taken, as ImageNet-A does, probabilities are over those.
    ``rms_calibration_error_published`` leaves out the last bin, as the code behind published values does.
    Confidences are kept: 8 bytes a sample.

    Args:
        dataset: name of the test loader.
    """

    def __init__(self, dataset: str = "imagenet") -> None:
        super().__init__(dataset)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Forget all confidences."""
        self.metric = Calibration().to(module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep a batch's confidences."""
        self.metric.update(among_classes(logits, self.described.classes), batch.label)

    def compute(self) -> list[Result]:
        """Return ``rms_calibration_error``, ``rms_calibration_error_published``, ``aurra`` and ``ece``."""
        classes = {"decided_among": len(self.described.classes)} if self.described.classes else {}
        bins = {"ece": {"bins": ECE_BINS}, "aurra": {}}
        facets = {PUBLISHED: {"measure": "rms_calibration_error", "variant": "published"}}
        values, draws = self.metric.compute(), {}
        # One image in many cells is not many images.
        if not any("/" in group for group in self.described.groups):
            with self.metric.sync_context():
                draws = calibration_draws(*self.metric.kept(), f"calibration on {self.dataset}")
        return [
            self.resampled(
                name,
                value,
                {**classes, **bins.get(name, {"images_a_bin": BIN_SIZE})},
                draws.get(name),
                facets=facets.get(name),
            )
            for name, value in values.items()
        ]
