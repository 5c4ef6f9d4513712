"""Attacks on what is left: an image once broken is written down, and neither that attack nor the next works on it."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_robust.attacks.ascent import Ball
from lit_robust.attacks.attack import (
    Attack,
    AttackResult,
    Model,
    are_probabilities,
    as_batch,
    check_numbers,
    check_range,
    check_reach,
    clean_logits,
    frozen,
    score,
    within_classes,
)
from lit_robust.attacks.losses import LOSSES, Loss
from lit_robust.attacks.norms import NORMS, Generators
from lit_robust.core.arrays import Numbers
from lit_robust.core.errors import UserError
from lit_robust.core.folding import folded
from lit_robust.core.layout import in_fast_layout

NormName = Literal["l2", "linf"]


class Record:
    """What is known of each image of a batch while attacks try it one after another.

    Images that the network misclassifies clean are broken from the start.

    Attributes:
        model: float images in [0, 1] to logits, frozen by the caller.
        ball: the images that may be reached.
        clean: float32 ``[B, C, H, W]`` in [0, 1], its centres.
        labels: int64 ``[B]``, the true classes.
        logits: float32 ``[B, num_classes]`` of the clean images, computed in fp32.
        images: float32 ``[B, C, H, W]``, the image that broke each, or the one of highest loss that was tried.
        broken: bool ``[B]``, true where ``images`` is misclassified in fp32.
        losses: float32 ``[B]``, the loss at ``images``.
        steps: int64 ``[B]``, gradients computed for each image.
        queries: int64 ``[B]``, forward passes spent on each image by a search without gradients.
        vanished: int64 ``[B]``, how many of the gradients were zero or not finite.
    """

    def __init__(self, model: Model, ball: Ball, labels: Tensor, loss: Loss) -> None:
        clean, count = ball.clean, labels.new_zeros(len(labels))
        self.model, self.ball, self.clean, self.labels, self.loss = model, ball, clean, labels, loss
        # A network need not take an empty batch.
        self.logits = clean_logits(model, clean) if len(labels) else clean.new_zeros(0, 0)
        self.images = clean.clone()
        self.broken = self.logits.argmax(1) != labels if len(labels) else count.bool()
        self.losses = loss(self.logits, labels).float() if len(labels) else count.float()
        self.steps, self.queries, self.vanished = count.clone(), count.clone(), count.clone()

    def survivors(self) -> Tensor:
        """Return the rows that are not broken, int64 ascending; waits for an accelerator."""
        return (~self.broken).nonzero()[:, 0]

    def judge(self, rows: Tensor, images: Tensor) -> Tensor:
        """Score images in fp32 and write down those that break, or that raise the loss of what is not broken yet.

        Args:
            rows: int64 ``[N]``, which images of the batch, each at most once and none broken so far.
            images: float32 ``[N, C, H, W]``, in the ball of each up to rounding, which is undone here.

        Returns:
            bool ``[N]``, true where misclassified.
        """
        if not len(rows):
            return torch.zeros_like(rows, dtype=torch.bool)
        images = self.ball.select(rows).tighten(images)
        verdict = score(self.model, images, self.labels[rows], self.loss)
        keep = verdict.success | (verdict.loss > self.losses[rows])
        self.images[rows] = torch.where(keep.view(-1, 1, 1, 1), images, self.images[rows])
        self.losses[rows] = torch.where(keep, verdict.loss, self.losses[rows])
        self.broken[rows] = verdict.success
        return verdict.success

    def result(self) -> AttackResult:
        """Return what was found."""
        probabilities = are_probabilities(self.logits)
        return AttackResult(self.images, self.broken, self.losses, self.steps, self.vanished, probabilities)

    def ranked_targets(self, most: int) -> Tensor:
        """Return each image's wrong classes, the likeliest on the clean image first, int64 ``[B, at most most]``."""
        first = self.logits.scatter(1, self.labels[:, None], float("inf"))
        return first.sort(stable=True, dim=1, descending=True).indices[:, 1 : 1 + most]


class SurvivorAttack(Attack):
    """An attack that explores the balls of the images still standing, and leaves each at its first success."""

    norm: NormName
    eps: float
    draws_numbers: ClassVar[bool] = True

    @abstractmethod
    def explore(self, record: Record, generator: Generators | None) -> None:
        """Attack the record's survivors and judge what was found there; gradients are enabled, the network is frozen.

        Args:
            record: what is known of the batch.
            generator: one for the batch, or one for each of the record's images.
        """

    def __call__(
        self, model: Model, images: Numbers, labels: Numbers, *, generator: Generators | None = None
    ) -> AttackResult:
        """Attack and score; see ``Attack``. Waits for the accelerator at each step.

        Images that the network misclassifies clean are returned as they are. ``AttackResult.images`` is the first one
        that broke, or that of highest loss where none did; ``success`` is any mistake, also of a targeted search.
        """
        with self._opened(model, images, labels, LOSSES[self._scored_loss()], generator) as record:
            self.explore(record, generator)
        return record.result()

    def _scored_loss(self) -> str:
        return "margin"

    @contextmanager
    def _opened(
        self, model: Model, images: Numbers, labels: Numbers, loss: Loss, generator: Generators | None
    ) -> Iterator[Record]:
        """Check a call, freeze the network, and give the record to explore; check the verdicts at the end."""
        images, labels = as_batch(model, images, labels)
        check_range(images)
        check_reach(self.eps, self.norm, images)
        if generator is None and self.draws_numbers:
            raise UserError(f"{type(self).__name__} needs random numbers: pass a torch.Generator, or one an image.")
        if not (generator is None or isinstance(generator, torch.Generator)) and len(generator) != len(images):
            raise UserError(
                f"{len(generator)} generators for {len(images)} images: give one for the whole batch or one an image."
            )
        # Autograd refuses to save inference tensors, which Lightning's test loop hands out; copies are ordinary.
        with torch.inference_mode(False), torch.enable_grad(), frozen(model), folded(model):
            ball = Ball(images.detach().clamp(0, 1), NORMS[self.norm], self.eps)
            model = within_classes(in_fast_layout(model, images.device.type), labels, "label")
            record = Record(model, ball, labels.clone(), loss)
            check_numbers(record.losses)
            yield record
        check_numbers(record.losses)
