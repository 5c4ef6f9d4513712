"""A few images of a test set, the same ones on any number of ranks, kept for a reader's eyes."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import Trainer
from torch import Tensor

from lit_robust.callbacks.restriction import SampleRestriction
from lit_robust.core.errors import UserError
from lit_robust.core.files import atomic_path

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
                with atomic_path(Path(trainer.default_root_dir) / files[number][role]) as beside:
                    Image.fromarray(image).save(beside, format="PNG")
        return files


def coming(trainer: Trainer, dataset: str) -> NDArray[np.int64]:
    """Return the numbers, ascending, of a test set's samples that will be evaluated: limited and restricted."""
    data, callbacks = trainer.datamodule, trainer.callbacks  # type: ignore[attr-defined]
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
