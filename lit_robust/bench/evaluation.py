"""`lit-robust bench evaluation`: what all measures of a suite cost against the bare forward pass over the same batches.

Attacks are left out: they are passes of their own, which `bench attacks` times.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lit_robust.bench.measuring import (
    Figure,
    Repeatable,
    alternate,
    extra_memory,
    machine,
    quiet,
    ratio,
    synchronise,
    table,
)
from lit_robust.callbacks import (
    CalibrationEvaluation,
    ClassSubsetAccuracy,
    CleanAccuracy,
    CorrectSamples,
    CorruptionEvaluation,
    KeepPredictions,
    OodEvaluation,
    ShapeBiasEvaluation,
)
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.precision import full_precision
from lit_robust.data.packing.corrupting import CELLS
from lit_robust.models import Network
from lit_robust.modules import StandardModule
from lit_robust.reference import imagenet_categories, imagenet_subset

Way = Literal["bare", "loop", "suite", "keeping"]
WAYS: Mapping[Way, str] = {
    "bare": "bare forward passes",
    "loop": "Lightning's loop, no measure",
    "suite": "all measures",
    "keeping": "all measures, predictions kept on disk",
}
NUM_CLASSES = 1000
SETS = ("imagenet", "imagenet-c", "imagenet-a", "imagenet-o", "cue-conflict")


@dataclass(frozen=True)
class EvaluationSubject:
    """What is evaluated.

    Attributes:
        network: name, such as ``torchvision/resnet18``.
        size: side of the images, pixels.
        batch: images a batch.
        batches: of each of the five sets.
    """

    network: str
    size: int
    batch: int
    batches: int


def bench_evaluation(network: str, size: int, batch: int, batches: int, rounds: int) -> str:
    """Time passes over five sets in turn, weigh two of them in processes of their own, and return the table.

    Images and labels are random, and lie ready on the device: only what comes after loading is measured.

    Args:
        network: name, such as ``torchvision/resnet18``.
        size: side of the images, pixels.
        batch: images a batch.
        batches: of each of the five sets.
        rounds: measurements of each, at least 1.
    """
    subject = EvaluationSubject(network, size, batch, batches)
    passes = {name: build_pass(way, subject) for way, name in WAYS.items()}
    for once in passes.values():
        once()
    images = batch * batches * len(SETS)
    rates = {name: partial(_rate, once, images) for name, once in passes.items()}
    figures = alternate(rates, rounds, "images/s")
    bare = figures[WAYS["bare"]]
    title = f"{network}, five sets of {batches} batches of {batch} images of {size} px"
    others = [figure for figure in figures.values() if figure is not bare]
    memory = {way: extra_memory(build_weighed, (way, subject)) for way in ("bare", "suite")}
    lines = [
        table(title, list(figures.values()), {figure.name: ratio(bare, figure) for figure in others}),
        "",
        f'"Ours" is "{bare.name}".',
        *(f"{figure.name}: {_added(bare, figure):+.1f} % of the time of {bare.name}." for figure in others),
        f"A pass holds at its peak {memory['bare']:.0f} MiB bare, {memory['suite']:.0f} MiB with all measures.",
    ]
    return "\n".join([machine(("torch", "torchvision", "pytorch-lightning")), "", *lines])


def _added(bare: Figure, other: Figure) -> float:
    """Return what is added to the bare time, in percent; the median over the rounds."""
    return 100 * (ratio(bare, other) - 1)


def _rate(once: Callable[[], float], images: int) -> float:
    return images / once()


def build_pass(way: Way, subject: EvaluationSubject) -> Callable[[], float]:
    """Return what passes over all sets once, and returns the seconds from the first batch to the last result."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = StandardModule(Network(subject.network, NUM_CLASSES)).to(device).eval()
    data = RandomSets(subject, device)
    return partial(_bare, module, data) if way == "bare" else partial(_tested, module, data, way)


def build_weighed(way: Way, subject: EvaluationSubject) -> Callable[[], None]:
    """Return the same without the time."""
    once = build_pass(way, subject)

    def weighed() -> None:
        once()

    return weighed


def _bare(module: StandardModule, data: "RandomSets") -> float:
    synchronise(module.device)
    begin = time.perf_counter()
    with torch.inference_mode(), full_precision(module.device.type):
        for batches in data.test_dataloader().values():
            for batch in batches:
                module.model(batch.image)
    synchronise(module.device)
    return time.perf_counter() - begin


def _tested(module: StandardModule, data: "RandomSets", way: Way) -> float:
    device = data.images.device  # Not the module's: every test leaves it on the processor.
    clock = Clock(data.images)
    measures = [] if way == "loop" else [*_measures(), *(_keepers() if way == "keeping" else ())]
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            default_root_dir=Path(folder),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            # Its end comes after all measures' ends, as callbacks are called in their order.
            callbacks=[*measures, clock],
        )
        trainer.test(module, data, verbose=False)
    return clock.seconds


def _measures() -> list[Callback]:
    """Return every measure without an attack or a memory, on every set that it is for."""
    return [
        CleanAccuracy(),
        CalibrationEvaluation(),
        ClassSubsetAccuracy(),
        CorrectSamples(),
        CorruptionEvaluation(),
        CleanAccuracy("imagenet-a"),
        CalibrationEvaluation("imagenet-a"),
        OodEvaluation(scores=["max_softmax", "max_logit", "energy"]),
        ShapeBiasEvaluation(),
    ]


def _keepers() -> list[Callback]:
    return [KeepPredictions(name) for name in SETS]


class Clock(Callback):
    """Takes the time from before the first batch until all callbacks before it have their results.

    Args:
        images: of a batch that goes before, as every test begins with an empty store of the device's memory.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        pl_module(self.images)
        synchronise(pl_module.device)
        self.begin = time.perf_counter()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        synchronise(pl_module.device)
        self.seconds = time.perf_counter() - self.begin


class RandomSets(LightningDataModule):
    """Random images in the form of ImageNet, ImageNet-C, -A, -O and cue-conflict images, all of them on the device."""

    def __init__(self, subject: EvaluationSubject, device: torch.device) -> None:
        super().__init__()
        self.subject = subject
        generator = torch.Generator().manual_seed(0)
        shape = (subject.batch, 3, subject.size, subject.size)
        # All batches have the same images, which the network does not know.
        self.images = torch.rand(shape, generator=generator).to(device)
        self.loaders = {
            name: Repeatable([self._batch(name, number) for number in range(subject.batches)]) for name in SETS
        }

    @cached_property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """Name to description of each set."""
        return {name: self._described(name) for name in SETS}

    def _described(self, name: str) -> EvaluationSet:
        arguments: Mapping[str, dict[str, Any]] = {
            "imagenet": {},
            "imagenet-c": {"groups": CELLS},
            "imagenet-a": {"classes": imagenet_subset("imagenet-a")},
            "imagenet-o": {
                "classes": imagenet_subset("imagenet-o"),
                "groups": ("in-distribution", "out-of-distribution"),
            },
            "cue-conflict": {"categories": imagenet_categories()},
        }
        return EvaluationSet(name, self.subject.batch * self.subject.batches, {}, **arguments[name])

    def _batch(self, name: str, number: int) -> Batch:
        described, device = self.evaluation_sets[name], self.images.device
        index = torch.arange(self.subject.batch, device=device) + number * self.subject.batch
        choice: Sequence[int] = described.classes or range(len(described.categories) or NUM_CLASSES)
        return Batch(
            image=self.images,
            label=torch.tensor(choice, device=device)[index % len(choice)],
            index=index,
            valid=torch.ones_like(index, dtype=torch.bool),
            group=index % len(described.groups) if described.groups else None,
            texture=index // 3 % len(described.categories) if described.categories else None,
        )

    def test_dataloader(self) -> dict[str, "Repeatable"]:
        """Return each set's batches."""
        return self.loaders
