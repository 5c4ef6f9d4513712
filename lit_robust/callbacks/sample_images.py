"""A few images of a test set, the same ones on any number of ranks, kept for a reader's eyes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.display import displaying
from lit_robust.callbacks.evaluation import log_images
from lit_robust.callbacks.plain import data_of, logits_of_step, valid_part
from lit_robust.callbacks.restriction import SampleRestriction, restricted
from lit_robust.core.batch import Batch, EvaluationSet, as_batch
from lit_robust.core.errors import UserError
from lit_robust.core.files import atomic_path
from lit_robust.metrics.base import among_classes

FOLDER = "examples"


@dataclass
class Gallery:
    """Collects chosen samples on whichever rank they turn up, and brings them together.

    Attributes:
        wanted: sample numbers to keep.
        kept: sample number to its images by role, uint8 ``[H, W, 3]``, and its captions by role.
    """

    wanted: frozenset[int]
    kept: dict[int, tuple[dict[str, NDArray[np.uint8]], dict[str, str]]] = field(default_factory=dict)

    @classmethod
    def among(cls, numbers: NDArray[np.int64], size: int) -> "Gallery":
        """Choose ``size`` of the samples that will come, evenly over their ``numbers``, ascending.

        Raises:
            UserError: ``size`` is negative.
        """
        if size < 0:
            raise UserError(f"examples is {size}: give a number of images, or 0 for none.")
        places = np.linspace(0, len(numbers) - 1, min(size, len(numbers))).round().astype(int)
        return cls(frozenset(numbers[places].tolist()))

    def places(self, index: Tensor) -> list[tuple[int, int]]:
        """Return (place in the batch, sample number) of the wanted samples among ``index`` ``[B]``."""
        return [(place, number) for place, number in enumerate(index.tolist()) if number in self.wanted]

    def gather(self) -> None:
        """Bring all ranks' images together, in sample order; a collective call."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[dict[int, tuple[dict[str, NDArray[np.uint8]], dict[str, str]]]]
            parts = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(parts, self.kept)
            self.kept = {number: entry for part in parts for number, entry in part.items()}
        self.kept = dict(sorted(self.kept.items()))

    def save(self, trainer: Trainer, prefix: str) -> dict[int, dict[str, str]]:
        """Write every image as a PNG into ``examples/`` of the run's folder, on rank 0.

        Returns:
            Sample number to role to the file, relative to the run's folder.
        """
        files: dict[int, dict[str, str]] = {}
        for number, (images, _) in self.kept.items():
            files[number] = {role: f"{FOLDER}/{prefix}-{number}-{role}.png" for role in images}
            for role, image in images.items() if trainer.is_global_zero else ():
                with atomic_path(Path(trainer.default_root_dir) / files[number][role]) as temporary:
                    Image.fromarray(image).save(temporary, format="PNG")
        return files


def coming(trainer: Trainer, dataset: str) -> NDArray[np.int64]:
    """Return the numbers, ascending, of a test set's samples that will be evaluated: limited and restricted."""
    data, callbacks = data_of(trainer), trainer.callbacks  # type: ignore[attr-defined]
    described = data.evaluation_sets[dataset]
    count = described.count
    numbers: NDArray[np.int64] = data.numbers_taken(count) if hasattr(data, "numbers_taken") else np.arange(count)
    for callback in callbacks:
        if isinstance(callback, SampleRestriction) and callback.dataset == dataset:
            numbers = np.intersect1d(numbers, callback.found(described, data).numbers)
    return numbers


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """Return ``[H, W, 3]`` uint8 of a float image ``[3, H, W]`` in [0, 1]."""
    pixels: NDArray[np.uint8] = image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


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
        sets = data_of(trainer).evaluation_sets
        # Rank 0's loggers show what all ranks collect.
        shows = any(hasattr(logger, "log_image") for logger in trainer.loggers)
        self.galleries = {
            number: (described, Gallery.among(coming(trainer, described.name), self.examples))
            for number, described in enumerate(sets.values())
            if shows and not described.categories
        }
        self.seen = dict.fromkeys(self.galleries, torch.zeros((), dtype=torch.int64, device=pl_module.device))
        self.came = dict.fromkeys(self.galleries, 0)

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
        batch = as_batch(batch, self.came[dataloader_idx])
        self.came[dataloader_idx] += len(batch)
        broken = 0 if batch.broken is None else batch.broken.sum()
        self.seen[dataloader_idx] = self.seen[dataloader_idx] + batch.valid.sum() + broken
        if len(gallery.kept) == len(gallery.wanted):
            return
        answers = logits_of_step(outputs, pl_module, batch)
        kept, logits = valid_part(batch, answers, described.name, trainer)
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
            with displaying(is_partial=seen < restricted(described, trainer).count):
                log_images(trainer, f"test/{described.name}/examples", images, words)


def caption(described: EvaluationSet, batch: Batch, place: int, answer: int) -> str:
    """Return what stands beneath an image: its group, where the set has groups, its class if it has one, the answer."""
    parts = [] if batch.group is None or not described.groups else [described.groups[int(batch.group[place])]]
    label = int(batch.label[place])
    # Images of unknown classes have the label -1.
    parts += [f"is {described.class_name(label)}"] if label >= 0 else []
    return ", ".join([*parts, f"says {described.class_name(answer)}"])
