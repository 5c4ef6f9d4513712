"""Adversarial training (Madry et al. 2018), and what all schemes with an attack share."""

import math
from abc import ABC
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lit_robust.attacks import PGD
from lit_robust.attacks.attack import check_attack
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.metrics import RobustAccuracy
from lit_robust.models import Network
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation

MOST_UNMOVED = 0.01
"""The share of images that an attack may leave where they were before there is a warning."""


@dataclass(frozen=True)
class AttackSchedule:
    """When training attacks, and how strongly.

    Attributes:
        warmup_epochs: eps grows from 0 to its full size over this many epochs, and the step size with it; 0 for none.
        validate_every: attack the validation images, too, each so many epochs, the last epoch included; 0 for never.
            ``val/adversarial_top1`` is then what to choose the best checkpoint by.
        validation_attack: what the validation images are attacked with; None for the training attack, whose few steps
            may be all that a training with one step withstands.
    """

    warmup_epochs: float = 0.0
    validate_every: int = 1
    validation_attack: PGD | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < math.inf or self.validate_every < 0:
            raise UserError(
                f"warmup_epochs is {self.warmup_epochs} and validate_every {self.validate_every}: give a number of "
                "epochs, 0 or more."
            )

    def strength(self, epochs: float) -> float:
        """Return the share of eps, in (0, 1], after ``epochs`` epochs, the step in hand included."""
        return min(1.0, epochs / self.warmup_epochs) if self.warmup_epochs else 1.0

    def validates(self, epoch: int, last: bool) -> bool:
        """Return whether the validation after ``epoch``, counted from 0, is under attack."""
        return self.validate_every > 0 and (last or (epoch + 1) % self.validate_every == 0)


class AttackingModule(ClassifierModule, ABC):
    """A classifier whose training attacks it.

    Args:
        attack: the attack that makes the training images; what a *test* attacks with is its callback's.
        schedule: the attack's warm-up, and validation under attack.
    """

    def __init__(
        self,
        network: Network = Network(),
        optimisation: Optimisation = Optimisation(),
        attack: PGD = PGD(),
        schedule: AttackSchedule = AttackSchedule(),
    ) -> None:
        check_attack(attack)
        if attack.eps == 0:
            raise UserError("A training attack of eps 0 changes nothing: give eps above 0.")
        super().__init__(network, optimisation)
        self.attack = attack
        self.schedule = schedule
        self.validation_robustness = RobustAccuracy()
        self.validation_unmoved = RobustAccuracy()
        self._unmoved, self._watched = torch.tensor(0), 0
        self._warned: set[str] = set()
        self.keep_hyperparameters(network=network, optimisation=optimisation, attack=attack, schedule=schedule)

    def perturb(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's images under the attack of this step, at the warm-up's strength."""
        attack = self.attack
        if self.schedule.warmup_epochs:
            done = self.current_epoch + (batch_idx + 1) / self.trainer.num_training_batches
            attack = attack.with_eps(attack.eps * self.schedule.strength(done))
        found = attack.search(self.model, batch.image, batch.label, generator=self._training_draws(batch))
        # No step waits for the device.
        self.log("train/unmoved", found.unmoved.float().mean(), batch_size=len(found.unmoved))
        self._unmoved = self._unmoved.to(self.device) + found.unmoved.sum()
        self._watched += len(found.unmoved)
        return found.images

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Warn once of an attack that moves too little, where the loggers wait for the device anyway."""
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.on_train_end()

    def on_train_end(self) -> None:
        """Warn of what the attack did not move since the loggers last waited."""
        if self._watched:
            self._warn_of(float(self._unmoved) / self._watched, "training")
            self._unmoved, self._watched = torch.zeros_like(self._unmoved), 0

    def _warn_of(self, unmoved: float, what: str) -> None:
        if unmoved > MOST_UNMOVED and what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(
                f"The {what} attack never moved {unmoved:.1%} of the images, as their gradients are zero or not "
                "finite: the network hides its gradient, and accuracy under this attack says nothing. Look whether it "
                "returns logits and has not collapsed."
            )

    def _training_draws(self, batch: Batch) -> list[torch.Generator] | None:
        """Return each sample's source of random draws in this epoch, whichever rank and batch it is in."""
        if self.attack.start == "none" and self.attack.target != "random":
            return None  # Nothing is drawn, and to read the numbers is to wait for the device.
        return [
            torch.Generator(self.device).manual_seed(
                stream_seed(run_seed(), "attack start, training", self.current_epoch, number)
            )
            for number in batch.index.tolist()
        ]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count correct answers on the valid samples, and, where the schedule says so, on the same under attack."""
        super().validation_step(batch, batch_idx)
        if not self._validates():
            return
        kept = batch.select(batch.valid)
        if not len(kept):
            return
        generators = [
            torch.Generator().manual_seed(stream_seed(run_seed(), "attack start, validation", number))
            for number in kept.index.tolist()
        ]
        attack = self.schedule.validation_attack or self.attack
        found = attack.search(self.model, kept.image, kept.label, generator=generators)
        self.validation_robustness.update((self.model(found.images).argmax(1) == kept.label)[None])
        self.validation_unmoved.update(found.unmoved[None])

    def on_validation_epoch_end(self) -> None:
        """Log ``val/top1`` and ``val/top5``; where images were attacked ``val/adversarial_top1`` and ``val/unmoved``.

        All are exact over all ranks. The last is the share of images that the attack never moved.
        """
        super().on_validation_epoch_end()
        if self._validates():
            self.log("val/adversarial_top1", self.validation_robustness.compute().float(), prog_bar=True)
            unmoved = self.validation_unmoved.compute().float()
            self.log("val/unmoved", unmoved)
            self._warn_of(float(unmoved), "validation")
        self.validation_robustness.reset()
        self.validation_unmoved.reset()

    def on_fit_start(self) -> None:
        """Watch anew what the attack moves; refuse to choose checkpoints by a value that some epochs do not have."""
        self._unmoved, self._watched, self._warned = torch.tensor(0), 0, set()
        every = self.schedule.validate_every
        for callback in self.trainer.checkpoint_callbacks:
            chosen = getattr(callback, "monitor", None) == "val/adversarial_top1"
            if chosen and (every == 0 or getattr(callback, "_every_n_epochs", 1) % every):
                raise UserError(
                    f"A checkpoint is chosen by val/adversarial_top1, which validate_every {every} does not give in "
                    "every epoch: set the checkpoint's every_n_epochs to it, validate_every to 1, or monitor val/top1."
                )

    def _validates(self) -> bool:
        if self.trainer.state.fn != TrainerFn.FITTING:
            return self.schedule.validate_every > 0
        last = self.current_epoch + 1 == self.trainer.max_epochs
        return self.schedule.validates(self.current_epoch, last)


class AdversarialModule(AttackingModule):
    """A classifier trained on PGD adversarial examples of itself (Madry et al. 2018).

    The attack runs on the network in eval mode; the adversarial batch alone trains it and moves its batch norm, as
    in MadryLab/robustness (``train.py``). The attack's defaults are L2, eps 3 and 7 steps, as in Chen et al. (2020).
    """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the attacked batch."""
        logits = self.model(self.perturb(batch, batch_idx))
        loss = self.loss(logits, batch.label)
        self.log_training(loss, logits, batch.label)
        return loss
