"""What is watched while a network trains: images a second, the time left, and catastrophic overfitting."""

import math
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.files import duration_shown
from lit_robust.core.seeds import run_seed, stream_seed


class Throughput(Callback):
    """Logs ``train/images_per_second``: images of all ranks a second, since the last logged step.

    Validation does not count. The clock is the host's; where values are logged, they are waited for, and so is the
    device, so that a rate between two logged steps is the device's, too.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; a training that is resumed in mid-epoch starts no epoch."""
        self.images, self.since = 0, time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self.images, self.since = 0, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew after a validation in mid-epoch."""
        self.images, self.since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the rate, and at every logged step begin anew."""
        self.images += len(batch) * trainer.world_size
        pl_module.log("train/images_per_second", self.images / (time.monotonic() - self.since), batch_size=len(batch))
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.images, self.since = 0, time.monotonic()


class Announcement(Callback):
    """Says once how long a training, and each set of a test, will take, where that is more than a minute.

    The first steps compile, allocate and fill caches: the clock starts after them.

    Args:
        warm_up: steps before the clock starts.
        seconds: measured before it prints, by the host's clock.
    """

    def __init__(self, warm_up: int = 3, seconds: float = 10.0) -> None:
        self.warm_up = warm_up
        self.seconds = seconds
        self._begin()

    def _begin(self) -> None:
        self.steps, self.since, self.printed = 0, 0.0, False

    def _step(self, module: LightningModule, left: float, work: str) -> None:
        """Count a step; print where enough are measured, on rank 0."""
        self.steps += 1
        if self.steps <= self.warm_up:
            self.since = time.monotonic()
            return
        measured = time.monotonic() - self.since
        if self.printed or measured < self.seconds:
            return
        self.printed = True
        seconds = measured / (self.steps - self.warm_up) * left
        if 60 < seconds < math.inf:
            module.print(f"{work}: about {duration_shown(seconds)}.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Estimate the steps that are left of all epochs."""
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
        left = (epochs - trainer.current_epoch) * trainer.num_training_batches - (batch_idx + 1)
        if trainer.max_steps >= 0:
            left = min(left, trainer.max_steps - trainer.global_step)
        self._step(pl_module, left, f"{left:,.0f} more steps, without validation")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin anew with each set: one is attacked, the next is not."""
        if batch_idx == 0:
            self._begin()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Estimate the batches that are left of a set."""
        left = trainer.num_test_batches[dataloader_idx] - (batch_idx + 1)
        self._step(pl_module, left, f"{left:,.0f} more batches of this set")


class OverfittingMonitor(Callback):
    """Attacks a part of some training batches with more steps than training does, and watches for a collapse.

    One-step training may lose all accuracy under PGD within an epoch, while accuracy under its own attack jumps up
    (Wong et al. 2020, section 5.4, who watch a PGD accuracy of training batches as this does). Logged as
    ``train/monitored_adversarial_accuracy``, a fraction; the mean over ranks, so that all come to the same verdict.

    Args:
        attack: of many steps, such as 10; its eps that of training, or a smaller one.
        every: batches from one look to the next.
        images: how many of the batch's images a rank attacks.
        drop: how far, as a fraction, accuracy may fall below its best before that is called a collapse.
        stop: end training there, otherwise warn. The best checkpoint by ``val/adversarial_top1`` is from before where
            validation attacks with several steps (``schedule.validation_attack``): under one step it may be the worst.
    """

    def __init__(self, attack: PGD, every: int = 200, images: int = 64, drop: float = 0.2, stop: bool = True) -> None:
        if every < 1 or images < 1 or not 0 < drop < 1:
            raise UserError(
                f"every is {every}, images {images} and drop {drop}: give 1 or more, 1 or more, and a fraction "
                "between 0 and 1."
            )
        self.attack = attack
        self.every = every
        self.images = images
        self.drop = drop
        self.stop = stop
        self.best = 0.0
        self.collapsed = False
        self.warned: set[str] = set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at every so many batches."""
        done = trainer.fit_loop.total_batch_idx + 1
        if done % self.every:
            return
        images, labels = batch.image[: self.images], batch.label[: self.images]
        seed = stream_seed(run_seed(), "attack start, monitor", done, trainer.global_rank)
        generator = torch.Generator(images.device).manual_seed(seed)
        with trainer.precision_plugin.forward_context():
            result = self.attack(pl_module.get_submodule("model"), images, labels, generator=generator)
        for sentence in result.flags.sentences():
            if sentence not in self.warned:
                self.warned.add(sentence)
                rank_zero_warn(f"Accuracy under the monitor's attack may be too high. {sentence}")
        accuracy = float(trainer.strategy.reduce((~result.success).float().mean(), reduce_op="mean"))
        pl_module.log("train/monitored_adversarial_accuracy", accuracy, batch_size=len(images))
        self.best = max(self.best, accuracy)
        if accuracy >= self.best - self.drop or self.collapsed:
            return
        self.collapsed = True
        trainer.should_stop = trainer.should_stop or self.stop
        rank_zero_warn(
            f"Catastrophic overfitting: accuracy under {self.attack.steps}-step PGD fell from {self.best:.3f} to "
            f"{accuracy:.3f} by batch {done}{'; training stops' if self.stop else ''}. Train with more steps, a "
            "smaller step_size or eps, or a warm-up of eps, from a checkpoint of before."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far, which a resumed run goes on from."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the best accuracy; a run that goes on after a collapse is watched again."""
        self.best = state_dict["best"]
