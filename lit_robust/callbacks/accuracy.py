"""Clean accuracy."""

from pytorch_lightning import LightningModule
from torch import Tensor

from lit_robust.batch import Batch, EvaluationSet
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.metrics import TopKAccuracy
from lit_robust.results import Result


class CleanAccuracy(EvaluationCallback):
    """Top-1 and top-5 accuracy of a test set.

    Args:
        dataset: name of the test loader.
    """

    def __init__(self, dataset: str = "imagenet") -> None:
        super().__init__(dataset)
        self.metric = TopKAccuracy(top_k=(1, 5))

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the sums to zero."""
        self.metric.reset()
        self.metric.to(module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch."""
        self.metric.update(logits, batch.label)

    def compute(self) -> list[Result]:
        """Return ``top1`` and ``top5``."""
        return [
            self.result(f"top{k}", value, "fraction", {})
            for k, value in zip(self.metric.top_k, self.metric.compute(), strict=True)
        ]
