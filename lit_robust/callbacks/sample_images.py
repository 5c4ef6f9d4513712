"""A few images of every test set with the network's answers, for loggers that show images."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lit_robust.callbacks.evaluation import log_images, valid_part
from lit_robust.callbacks.gallery import Gallery, coming, to_uint8
from lit_robust.callbacks.restriction import restricted
from lit_robust.callbacks.shown import noting
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.metrics.base import among_classes


class SampleImages(Callback):
    """Logs images of every test set as ``test/<dataset>/examples``: what each is, and what the network says.

    Sets with conflicting cues have images of their own, see ``ShapeBiasEvaluation``. Without a logger that shows images
    nothing is done. A test that goes on after an interruption logs none of the sets that were through.

    Args:
        examples: how many images a set, spread evenly over it.
    """

    def __init__(self, examples: int = 8) -> None:
        self.examples = examples
        self.galleries: dict[int, tuple[EvaluationSet, Gallery]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images of each set."""
        sets = getattr(trainer.datamodule, "evaluation_sets", {})  # type: ignore[attr-defined]
        # Rank 0's loggers show what all ranks collect.
        shows = any(hasattr(logger, "log_image") for logger in trainer.loggers)
        self.galleries = {
            number: (described, Gallery.among(coming(trainer, described.name), self.examples))
            for number, described in enumerate(sets.values())
            if shows and not described.categories
        }
        self.seen = dict.fromkeys(self.galleries, torch.zeros((), dtype=torch.int64, device=pl_module.device))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the chosen ones among a batch's valid images."""
        if dataloader_idx not in self.galleries:
            return
        described, gallery = self.galleries[dataloader_idx]
        broken = 0 if batch.broken is None else batch.broken.sum()
        self.seen[dataloader_idx] = self.seen[dataloader_idx] + batch.valid.sum() + broken
        if len(gallery.kept) == len(gallery.wanted):
            return
        kept, logits = valid_part(batch, outputs, described.name, trainer)
        for place, number in gallery.places(kept.index):
            answer = int(among_classes(logits[place, None], described.classes).argmax())
            words = {"image": caption(described, kept, place, answer)}
            gallery.kept[number] = ({"image": to_uint8(kept.image[place])}, words)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' images together, and log them."""
        for number, (described, gallery) in self.galleries.items():
            gallery.gather()
            seen = int(trainer.strategy.reduce(self.seen[number].clone(), reduce_op="sum"))
            images = [images["image"] for images, _ in gallery.kept.values()]
            words = [words["image"] for _, words in gallery.kept.values()]
            with noting(is_partial=seen < restricted(described, trainer).count):
                log_images(trainer, f"test/{described.name}/examples", images, words)


def caption(described: EvaluationSet, batch: Batch, place: int, answer: int) -> str:
    """Return what stands beneath an image: its group, where the set has groups, its class if it has one, the answer."""
    parts = [] if batch.group is None or not described.groups else [described.groups[int(batch.group[place])]]
    label = int(batch.label[place])
    # Images of unknown classes have the label -1.
    parts += [f"is {described.class_name(label)}"] if label >= 0 else []
    return ", ".join([*parts, f"says {described.class_name(answer)}"])
