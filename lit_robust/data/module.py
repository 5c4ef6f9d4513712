"""The base of all data modules: what callbacks and networks may ask of them, and how loaders are made."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn

from lit_robust.core.batch import Batch, EvaluationSet, TrainingSet
from lit_robust.core.errors import UserError, check_count
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import EvaluationOrder, Plan, Share, random_stream
from lit_robust.data.loading.samples import EvaluationSamples, Samples, SampleTable, Source, TableSource
from lit_robust.data.loading.splits import Reading, Split, TableSplit, open_split, workers_for
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.settings import NumWorkers, check_groups, check_name, check_workers, count_workers, read_root
from lit_robust.shards import decoder_versions
from lit_robust.shards.fetch import is_url, shown


class RobustDataModule(LightningDataModule, ABC):
    """What every data module here offers: named test loaders that say what they hold.

    Attributes:
        limit: images of each test set that a quick look takes; None for all. ``lit-robust test --limit`` sets it.
    """

    limit: int | None = None

    def close(self) -> None:
        """End the processes of the loaders that were made; one that is iterated again starts its own."""

    def on_exception(self, exception: BaseException) -> None:
        """End the loaders' processes."""
        self.close()

    def teardown(self, stage: str) -> None:
        """End the loaders' processes."""
        self.close()

    @property
    @abstractmethod
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """Name to description of every test loader, in the loaders' order; known after ``setup``."""

    @property
    def missing_sets(self) -> Mapping[str, str]:
        """Name of every test set that is left out because it is not on disk, to the sentence that says so."""
        return {}

    def numbers_taken(self, count: int) -> NDArray[np.int64]:
        """Return the numbers, ascending, of the samples that are taken of a test set of ``count``.

        All of them, or ``limit`` at random, the same ones always: images of a class, or of a corruption, may lie side
        by side.
        """
        if self.limit is None or self.limit >= count:
            return np.arange(count)
        return np.sort(random_stream(0, "limit", 0).choice(count, self.limit, replace=False))

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each sample of a test set by its number; None where it is not known."""
        return None

    def fit_splits(self) -> tuple[str, ...]:
        """Return the splits that ``fit`` reads: ``val``, too, unless the module in training has nothing to validate."""
        module = getattr(self.trainer, "lightning_module", None)
        return ("train", "val") if getattr(module, "validates_fit", True) else ("train",)

    @property
    def training_set(self) -> TrainingSet:
        """The training samples' labels, and how an evaluation prepares them; known after ``setup`` for ``fit``."""
        raise UserError(f"{type(self).__name__} has no training images: name a set that has some, first in a suite.")

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
        """Turn uint8 images into floats in [0, 1], on the device; train on no copy of what could not be read.

        So a training step may get fewer images than ``batch_size`` where ``reading.on_error`` is ``skip``; every rank
        takes as many steps all the same. Evaluations get the copies, too, which are not valid.
        """
        training = self.trainer is not None and self.trainer.training
        return (batch.readable() if training else batch).as_float()


@dataclass(eq=False, repr=False)
class ShardDataModule(RobustDataModule, ABC):
    """A data module whose test set has one name and lies in one folder: the settings that all of them have.

    Attributes:
        root: folder of all sets, or its URL: ``https://``, ``s3://``, ``gs://``, ``hf://``, or a command
            ``pipe:...{}...``; behind a URL an info file must list the shards and their counts.
        name: subfolder of ``root`` that holds this set, and name of its test loader.
        eval_batch_size: samples a rank and evaluation batch.
        num_workers: processes a loader that read and decode; 0 does both in the main process; ``auto`` is one a core
            up to 12, but for one core of each rank.
        reading: how shards are read.
    """

    root: str | Path = "data"
    _: KW_ONLY
    name: str  # Lightning's base says it may be None.
    eval_batch_size: int = 256
    num_workers: NumWorkers = "auto"
    reading: Reading = Reading()

    def __post_init__(self) -> None:
        super().__init__()
        check_groups(self)
        check_count("eval_batch_size", self.eval_batch_size, 1)
        check_workers(self.num_workers)
        check_name("name", self.name)
        self.root = read_root(self.root)
        self._loaders: WeakSet[PlannedLoader] = WeakSet()

    def close(self) -> None:
        """End the processes of the loaders that were made; one that is iterated again starts its own."""
        for loader in self._loaders:
            loader.close()

    @property
    def subfolders(self) -> Sequence[str]:
        """The subfolders of ``root`` that are read."""
        return (self.name,)

    def folders(self) -> list[Path]:
        """Return the folders that must be there; none of a URL's."""
        return [] if is_url(str(self.root)) else [Path(self.root) / name for name in self.subfolders]

    def check_on_disk(self, need: str) -> None:
        """Raise a UserError where the root is a URL, and say in ``need`` what the set does that no URL can."""
        if is_url(str(self.root)):
            raise UserError(f"{need}, which {shown(str(self.root))} cannot: copy the data to a disk.")

    def open(self, split: str) -> Split:
        """Open a split of this set; every sample must have a class."""
        return open_split(str(self.root), self.name, split, self.reading)

    def evaluation_loader(
        self, split: Split, crop: EvaluationCrop, numbers: NDArray[np.int64] | None = None
    ) -> PlannedLoader:
        """Return the padded loader of this rank; see `evaluation_order`."""
        source, plan = self.evaluation_order(split, numbers)
        samples = EvaluationSamples(source, crop, self.reading.on_error)
        return self.loader(samples, plan, keeps_workers=False)

    def evaluation_order(self, split: Split, numbers: NDArray[np.int64] | None = None) -> tuple[Source, Plan]:
        """Return this rank's samples of a split, each valid once over all ranks: those named, else all or ``limit``."""
        taken = self.numbers_taken(len(split)) if numbers is None else numbers
        share = self.evaluation_share(len(taken))
        if numbers is None and len(taken) == len(split):
            return split.evaluation(share)
        return TableSource(_table(split)), EvaluationOrder(numbers=taken, **vars(share))

    def describe_training(self, split: Split, crop: EvaluationCrop) -> TrainingSet:
        """Return what a training split says of itself where its samples are prepared as for an evaluation."""
        return TrainingSet(_table(split).label, self.describe(split, "train", crop))

    def loader(self, samples: Samples, plan: Plan, keeps_workers: bool) -> PlannedLoader:
        """Return the loader of some samples in a planned order."""
        workers = count_workers(self.num_workers, 1 if self.trainer is None else self.trainer.num_devices)
        workers = workers if plan.lane_count is None else workers_for(plan.lane_count, workers)
        pins = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        loader = PlannedLoader(samples, plan, workers, pins, keeps_workers, self.reading.start_method)
        self._loaders.add(loader)
        return loader

    def describe(self, split: Split, split_name: str, crop: EvaluationCrop) -> dict[str, object]:
        """Return plain values for the results file: split, classes, preprocessing, decoders, which samples these are.

        A set's folder may have any name: only the count of classes shows that it is not ImageNet.
        """
        classes = {} if split.num_classes is None else {"num_classes": split.num_classes}
        return {"split": split_name, **classes, **crop.protocol(), "decoder": decoder_versions(), **split.protocol}

    def evaluation_share(self, count: int) -> Share:
        """Return which part of every batch is this process's, where all ranks evaluate ``count`` samples.

        No batch is larger than the samples fill: copies would cost time and memory.
        """
        share = self.share(self.eval_batch_size)
        return replace(share, batch_size=min(share.batch_size, -(-count // share.world)))

    def share(self, batch_size: int) -> Share:
        """Return which part of every batch is this process's."""
        if self.trainer is None:
            return Share(batch_size, 0, 1)
        return Share(batch_size, self.trainer.global_rank, self.trainer.world_size)


def _table(split: Split) -> SampleTable:
    if not isinstance(split, TableSplit):
        raise UserError(
            f"{split.where} is behind a URL, where labels are not known beforehand and samples have no place: copy the "
            "shards to a disk."
        )
    return split.table


IMAGENET_CLASSES = 1000


@dataclass(eq=False, repr=False)
class SingleSetDataModule(ShardDataModule, ABC):
    """A data module with one test loader, of the module's name.

    A subclass opens the samples, and sets what else is known of the test set.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.split_name = "test"
        self.crop = EvaluationCrop()
        self.decided_among: Sequence[int] = ()
        self.groups: Sequence[str] = ()
        self.category_classes: Mapping[str, Sequence[int]] = {}
        self._samples: Split | None = None

    @abstractmethod
    def open_samples(self) -> Split:
        """Open the set."""

    @property
    def samples(self) -> Split:
        """The set; known after ``setup``."""
        assert self._samples is not None
        return self._samples

    def setup(self, stage: str) -> None:
        """Open the set, once."""
        check_stage(self.name, stage)
        if self._samples is None:
            self._samples = self.open_samples()

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the one test loader."""
        return {self.name: self.evaluation_loader(self.samples, self.crop)}

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """The one test set."""
        # Labels that a choice of ImageNet's classes was made among are ImageNet's numbers, whoever counted them how.
        classes = {"num_classes": IMAGENET_CLASSES} if self.decided_among else {}
        described = EvaluationSet(
            name=self.name,
            count=len(self.samples),
            protocol={**self.describe(self.samples, self.split_name, self.crop), **classes},
            categories=self.category_classes,
            class_names=self.samples.class_names,
            classes=self.decided_among,
            groups=self.groups,
        )
        return {self.name: described}

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each sample by its number; None for a stream."""
        return self.samples.key

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless the network has the labels' classes, or, where a choice is made, ImageNet's."""
        if not self.decided_among:
            check_classes(self.samples, num_classes)
        elif num_classes != IMAGENET_CLASSES:
            raise UserError(
                f"The network has {num_classes} classes, but a choice of ImageNet's {IMAGENET_CLASSES} is taken for "
                f"{self.samples.where}: give a network of those, or set classes to all for another set."
            )


def check_stage(name: str, stage: str) -> None:
    """Raise a UserError where a set to test on is asked for anything else."""
    command = TrainerFn(stage).value
    if command != "test":
        raise UserError(
            f"The set {name} is there to test on, and has nothing for `lit-robust {command}`: name a set with "
            "training and validation images, such as ImageNetDataModule, in a suite before all others."
        )


def check_classes(split: Split, num_classes: int) -> None:
    """Raise a UserError unless a network of ``num_classes`` classes fits a split's labels."""
    needed = split.classes
    # A publisher's count must be met exactly; without one, a network may have more classes than are seen.
    if split.num_classes is None and isinstance(split, TableSplit) and needed > num_classes:
        highest = split.table.key(int(split.table.label.argmax()))
        raise UserError(
            f"The network has {num_classes} classes, but {split.where} has {highest} in class {needed - 1}: give "
            f"--model.network.num_classes the data's count, at least {needed}, or correct that class."
        )
    if split.num_classes is not None and needed != num_classes:
        part = "pack a part of ImageNet with --labels imagenet, or " if needed < num_classes == 1000 else ""
        raise UserError(
            f"The network has {num_classes} classes, but {split.where} has {needed}: "
            f"{part}give --model.network.num_classes {needed}."
        )
