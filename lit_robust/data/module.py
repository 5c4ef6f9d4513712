"""The base of all data modules: what callbacks and networks may ask of them, and how loaders are made."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from lit_robust.batch import Batch, EvaluationSet
from lit_robust.data.loader import EvaluationSamples, PlannedLoader, Request, TrainingSamples
from lit_robust.data.plan import evaluation_plan, training_plan
from lit_robust.errors import UserError
from lit_robust.seeds import run_seed


class RobustDataModule(LightningDataModule, ABC):
    """What every data module here offers: named test loaders that say what they hold."""

    @property
    @abstractmethod
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """Name to description of every test loader, in the loaders' order; known after ``setup``."""

    @abstractmethod
    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless a network of ``num_classes`` classes fits the labels."""

    @abstractmethod
    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the test loaders by name."""

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch; from pinned memory without waiting for the device, which Lightning does for tensors alone."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn uint8 images into floats in [0, 1], on the device."""
        return batch.as_float()


class ShardDataModule(RobustDataModule, ABC):
    """A data module that reads one folder of shards.

    Args:
        root: folder of all sets.
        name: subfolder of ``root`` that holds this set's tars, and name of its test loader.
        batch_size: samples a rank and training batch.
        eval_batch_size: samples a rank and evaluation batch.
        num_workers: processes that read and decode for one loader; 0 does both in the main process.
        seed: of order and augmentation; null takes that of ``seed_everything``.
    """

    name: str

    def __init__(
        self, root: Path, name: str, batch_size: int, eval_batch_size: int, num_workers: int, seed: int | None
    ) -> None:
        super().__init__()
        for setting, value, least in (
            ("eval_batch_size", eval_batch_size, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise UserError(f"{setting} is {value}: give {least} or more.")
        self.root = Path(root)
        self.name = name
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = run_seed() if seed is None else seed

    @property
    def folder(self) -> Path:
        """The folder that holds this set's tars."""
        return self.root / self.name

    def training_loader(self, samples: TrainingSamples) -> PlannedLoader:
        """Return the shuffled loader of this rank: equal full batches on every rank."""
        rank, world = self._place()
        if len(samples) < self.batch_size * world:
            raise UserError(
                f"{self.folder} holds {len(samples)} training images, fewer than one batch of {self.batch_size} on "
                f"{world} ranks: set batch_size to {max(len(samples) // world, 1)} or less."
            )
        plan = partial(_training_requests, len(samples), self.batch_size, self.seed, rank, world)
        order = {"samples": len(samples), "samples_a_step": self.batch_size * world, "seed": self.seed}
        return PlannedLoader(samples, plan, self.num_workers, self._pins(), keeps_workers=True, order=order)

    def evaluation_loader(self, samples: EvaluationSamples) -> PlannedLoader:
        """Return the padded loader of this rank: each sample valid once over all ranks."""
        rank, world = self._place()
        plan = partial(_evaluation_requests, len(samples), self.eval_batch_size, rank, world)
        return PlannedLoader(samples, plan, self.num_workers, self._pins(), keeps_workers=False, order={})

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _pins(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _training_requests(count: int, batch_size: int, seed: int, rank: int, world: int, epoch: int) -> list[Request]:
    every = np.ones(batch_size, dtype=bool)
    return [Request(epoch, numbers, every) for numbers in training_plan(count, batch_size, seed, epoch, rank, world)]


def _evaluation_requests(count: int, batch_size: int, rank: int, world: int, epoch: int) -> list[Request]:
    numbers, valid = evaluation_plan(count, batch_size, rank, world)
    return [Request(epoch, *batch) for batch in zip(numbers, valid, strict=True)]
