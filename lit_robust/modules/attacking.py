"""What training schemes with an attack share: the attack's random starts, its warm-up, and validation under attack."""

import math
from abc import ABC
from dataclasses import dataclass

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.metrics import RobustAccuracy
from lit_robust.models import Network
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation


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
        """Tell whether the validation after ``epoch``, counted from 0, is under attack."""
        return self.validate_every > 0 and (last or (epoch + 1) % self.validate_every == 0)


class AttackingModule(ClassifierModule, ABC):
    """A classifier whose training attacks it.

    Args:
        network: which network, with which weights.
        optimisation: optimiser, schedule and label smoothing; used by ``fit`` alone.
        attack: the attack that makes the training images; what a *test* attacks with is its callback's.
        schedule: the attack's warm-up, and validation under attack.
    """

    def __init__(self, network: Network, optimisation: Optimisation, attack: PGD, schedule: AttackSchedule) -> None:
        if attack.eps == 0 or attack.steps == 0:
            raise UserError(
                f"A training attack of eps {attack.eps:g} and {attack.steps} steps is none: give both above 0."
            )
        super().__init__(network, optimisation)
        self.attack = attack
        self.schedule = schedule
        self.validation_robustness = RobustAccuracy()
        self.keep_hyperparameters(network=network, optimisation=optimisation, attack=attack, schedule=schedule)

    def perturb(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's images under the attack of this step, at the warm-up's strength."""
        attack = self.attack
        if self.schedule.warmup_epochs:
            done = self.current_epoch + (batch_idx + 1) / self.trainer.num_training_batches
            attack = attack.with_eps(attack.eps * self.schedule.strength(done))
        return attack.perturb(self.model, batch.image, batch.label, generator=self._training_draws(batch))

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
        attacked = attack.perturb(self.model, kept.image, kept.label, generator=generators)
        self.validation_robustness.update((self.model(attacked).argmax(1) == kept.label)[None])

    def on_validation_epoch_end(self) -> None:
        """Log ``val/top1``, ``val/top5``, and where it was measured ``val/adversarial_top1``; exact over all ranks."""
        super().on_validation_epoch_end()
        if self._validates():
            self.log("val/adversarial_top1", self.validation_robustness.compute().float(), prog_bar=True)
        self.validation_robustness.reset()

    def on_fit_start(self) -> None:
        """Refuse to choose checkpoints by a value that some epochs do not have."""
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
