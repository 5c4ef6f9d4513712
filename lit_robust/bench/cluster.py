"""`lit-robust bench cluster`: what saving and resuming cost a training step, and what a second CPU rank brings."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from lit_robust.batch import Batch
from lit_robust.bench.loops import Repeatable, quiet
from lit_robust.bench.subjects import synchronise
from lit_robust.bench.timing import alternate, machine, ratio, table
from lit_robust.callbacks.requeue import SaveOnSignal
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule

NUM_CLASSES = 1000
WARM_UP = 2  # Steps that are not counted.
INTERVAL = 15 * 60  # Seconds between two periodic checkpoints of the ImageNet recipes.
HOOKS = ("on_train_batch_start", "on_train_batch_end")


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        network: name, such as ``torchvision/resnet50``.
        size: side of the images, pixels.
        batch: images a step and rank.
        steps: that are counted.
    """

    network: str
    size: int
    batch: int
    steps: int


def bench_cluster(network: str, size: int, batch: int, steps: int, rounds: int) -> str:
    """Time the parts of a training step that only a restart needs, and one rank beside two; return the tables.

    Images and labels are random, and lie ready. Ranks are processes of one thread each on the CPU, joined by gloo.

    Args:
        network: name, such as ``torchvision/resnet50``.
        size: side of the images, pixels.
        batch: images a step and rank.
        steps: that are counted, after two that are not.
        rounds: measurements of each, at least 1.
    """
    subject = Subject(network, size, batch, steps)
    one, two = "one rank", "two ranks"
    figures = alternate({one: partial(_ranks, subject, 1), two: partial(_ranks, subject, 2)}, rounds, "images/s")
    title = f"{network}, standard training, {batch} images of {size} px a rank, fp32, one thread a rank"
    efficiency = ratio(figures[two], figures[one]) / 2
    lines = [
        table(title, list(figures.values()), {}),
        f"Scaling efficiency, two ranks' rate of twice one's: {100 * efficiency:.0f} %.",
        _bookkeeping(subject),
    ]
    return "\n\n".join([machine(("torch", "torchvision", "pytorch-lightning")), *lines])


def _bookkeeping(subject: Subject) -> str:
    """Return what a step's hooks and a periodic checkpoint cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        periodic = ModelCheckpoint(folder / "checkpoints", save_top_k=0, save_last=True, every_n_train_steps=1 << 30)
        measured = HookClock([SaveOnSignal(), periodic])
        trainer = _train(subject, folder, [*measured.callbacks, measured])
        step, hooks = measured.step_seconds, measured.hook_seconds
        file = folder / "whole.ckpt"
        begin = time.perf_counter()
        trainer.save_checkpoint(file)
        seconds = time.perf_counter() - begin
        megabytes = file.stat().st_size / 1e6
    share, saving = 100 * hooks / step, 100 * seconds / INTERVAL
    return (
        f"A step takes {step:.3g} s; what it does for a restart, the hooks of SaveOnSignal and of a periodic "
        f"ModelCheckpoint, {1e6 * hooks:.0f} microseconds: {share:.3f} %. A checkpoint of {megabytes:.0f} MB is "
        f"written in {seconds:.2f} s, every {INTERVAL // 60} minutes: {saving:.2f} %. Together {share + saving:.2f} % "
        "of training."
    )


def _train(subject: Subject, folder: Path, callbacks: list[Callback], ranks: int = 1) -> Trainer:
    """Train a little, on ``ranks`` processes, and return the trainer."""
    module = StandardModule(Network(subject.network, NUM_CLASSES), Optimisation(learning_rate=1e-3))
    with quiet():
        trainer = Trainer(
            accelerator="auto" if ranks == 1 else "cpu",
            devices=ranks,
            strategy="auto" if ranks == 1 else "ddp_spawn",
            use_distributed_sampler=False,
            max_epochs=1,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            callbacks=callbacks,
        )
        trainer.fit(module, RandomTraining(subject))
    return trainer


def _ranks(subject: Subject, ranks: int) -> float:
    """Return images/s of a training on some ranks of one thread each, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        process = multiprocessing.get_context("spawn").Process(target=train_ranks, args=(subject, Path(folder), ranks))
        process.start()
        process.join()
        return ranks * subject.batch / float((Path(folder) / "seconds").read_text())


def train_ranks(subject: Subject, folder: Path, ranks: int) -> None:
    """Train, and leave the seconds a step in the file ``seconds`` of ``folder``."""
    _train(subject, folder, [StepClock(folder / "seconds")], ranks)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile have one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


class StepClock(Callback):
    """Writes the mean seconds of a step, the first ones left out, into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin behind the first steps."""
        if batch_idx == WARM_UP:
            synchronise(pl_module.device)
            self.begin = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        synchronise(pl_module.device)
        seconds = (time.perf_counter() - self.begin) / (trainer.global_step - WARM_UP)
        if trainer.is_global_zero:
            self.file.write_text(str(seconds))


class HookClock(Callback):
    """Takes the mean seconds of a step, and of some callbacks' hooks around it.

    Args:
        callbacks: whose hooks.
    """

    def __init__(self, callbacks: list[Callback]) -> None:
        self.callbacks = callbacks
        self.spent = 0.0
        for callback in callbacks:
            for name in HOOKS:
                setattr(callback, name, self._timed(getattr(callback, name)))

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*given: Any) -> None:
            begin = time.perf_counter()
            hook(*given)
            self.spent += time.perf_counter() - begin

        return timed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin behind the first steps."""
        if batch_idx == WARM_UP:
            synchronise(pl_module.device)
            self.begin, self.spent = time.perf_counter(), 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        synchronise(pl_module.device)
        steps = trainer.global_step - WARM_UP
        self.step_seconds, self.hook_seconds = (time.perf_counter() - self.begin) / steps, self.spent / steps


class RandomTraining(LightningDataModule):
    """Random images to train on."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = subject

    def train_dataloader(self) -> Repeatable:
        """Return the batches: all have the same images."""
        subject = self.subject
        shape = (subject.batch, 3, subject.size, subject.size)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        index = torch.arange(subject.batch)
        batch = Batch(images, index % NUM_CLASSES, index, torch.ones_like(index, dtype=torch.bool))
        return Repeatable([batch] * (subject.steps + WARM_UP))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch."""
        return batch.to(device)
