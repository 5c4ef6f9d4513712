"""Whether a network's confidence is its accuracy, on a test set."""

from pytorch_lightning import LightningModule
from torch import Tensor

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.results import Result
from lit_robust.metrics.base import among_classes
from lit_robust.metrics.calibration import BIN_SIZE, ECE_BINS, Calibration

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
        return [
            self.result(
                name,
                value,
                "fraction",
                {**classes, **bins.get(name, {"images_a_bin": BIN_SIZE})},
                facets=facets.get(name),
            )
            for name, value in self.metric.compute().items()
        ]
