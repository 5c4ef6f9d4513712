"""One attack at rising strengths in one pass: nothing broken is attacked again, and batches are kept full."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_robust.attacks.attack import Attack, AttackResult, Model, check_numbers, frozen, score
from lit_robust.attacks.losses import LOSSES
from lit_robust.core.errors import UserError

RandomOf = Callable[[int], torch.Generator]
"""A sample's number to the generator of its random draws, a fresh one at each call."""


@dataclass(frozen=True)
class Verdicts:
    """What became of some samples at one strength.

    Attributes:
        strength: place of the attack in the sweep.
        numbers: the samples' numbers.
        clean: float32 ``[N, C, H, W]`` in [0, 1].
        result: what the attack gave.
        labels: int64 ``[N]``, the true classes.
        broken: bool ``[N]``, true where the network under test misclassifies the attacked image, in fp32.
        final: bool ``[N]``, true where the sample is not attacked again: broken, or this strength is the last.
    """

    strength: int
    numbers: list[int]
    clean: Tensor
    result: AttackResult
    labels: Tensor
    broken: Tensor
    final: Tensor

    @property
    def withstood(self) -> Tensor:
        """How many strengths each sample withstood, int64 ``[N]``, where final."""
        return self.strength + (~self.broken).long()


@dataclass
class _Queue:
    numbers: list[int] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)


class Sweep:
    """Accuracy under one attack at several eps, each eps for the images that withstood all smaller ones.

    The ball of a larger eps holds that of a smaller one, so an image broken once is broken. The curve is therefore
    never above that of separate full runs, and an image's result is theirs up to where it breaks: with a generator
    a sample, each strength starts where a run of its own would.

    Survivors of a strength wait until they fill a batch of the next, so a GPU is as busy at the last as at the first.
    Less than two batches of images a strength are held, where no more than one is added at a time.

    Args:
        attacks: the same attack with eps rising.
        batch_size: images attacked at once.
        model: the network that is attacked.
        target: the network whose answers count; null for the one attacked. With another one the attack's own idea of
            success is about ``model``, and only its result is shown to ``target``.
        random_of: gives each sample's random numbers.

    Raises:
        UserError: no attack, or eps do not rise.
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        batch_size: int,
        model: Model,
        target: Model | None,
        random_of: RandomOf,
    ) -> None:
        radii = [attack.eps for attack in attacks]
        if not radii or sorted(set(radii)) != radii:
            raise UserError(f"The eps of a sweep are {radii}: give at least one, each larger than the one before.")
        self.attacks = list(attacks)
        self.batch_size = batch_size
        self.model = model
        self.target = target
        self.random_of = random_of
        self.queues = [_Queue() for _ in attacks]

    def add(self, numbers: Sequence[int], images: Tensor, labels: Tensor) -> list[Verdicts]:
        """Take in samples that are classified right, and attack as far as batches are full.

        Args:
            numbers: the samples' numbers, which choose their random draws.
            images: float32 ``[N, C, H, W]`` in [0, 1].
            labels: int64 ``[N]``.

        Returns:
            What was found meanwhile, of these samples or of earlier ones.
        """
        self._put(0, numbers, images, labels)
        return self._work(self.batch_size)

    def finish(self) -> list[Verdicts]:
        """Attack everything that still waits."""
        return self._work(1)

    def _put(self, strength: int, numbers: Sequence[int], images: Tensor, labels: Tensor) -> None:
        if len(numbers):
            queue = self.queues[strength]
            queue.numbers += numbers
            queue.images.append(images)
            queue.labels.append(labels)

    def _work(self, least: int) -> list[Verdicts]:
        found = []
        for strength, queue in enumerate(self.queues):
            while len(queue.numbers) >= least:
                verdicts = self._attack(strength, queue)
                found.append(verdicts)
                stands = ~verdicts.final
                numbers = [number for number, kept in zip(verdicts.numbers, stands.tolist(), strict=True) if kept]
                self._put(strength + 1, numbers, verdicts.clean[stands], verdicts.labels[stands])
        return found

    def _attack(self, strength: int, queue: _Queue) -> Verdicts:
        images, labels = torch.cat(queue.images), torch.cat(queue.labels)
        count = min(self.batch_size, len(images))
        numbers, rest = queue.numbers[:count], queue.numbers[count:]
        queue.numbers, queue.images, queue.labels = rest, [images[count:]], [labels[count:]]
        if not rest:
            queue.images, queue.labels = [], []
        images, labels = images[:count], labels[:count]
        generators = [self.random_of(number) for number in numbers]
        result = self.attacks[strength](self.model, images, labels, generator=generators)
        if not isinstance(result, AttackResult):
            name = type(self.attacks[strength]).__name__
            raise UserError(f"The attack {name} returned a {type(result).__name__}: return an AttackResult.")
        broken = result.success if self.target is None else self._judge(self.target, result, labels)
        final = broken if strength + 1 < len(self.attacks) else torch.ones_like(broken)
        return Verdicts(strength, numbers, images, result, labels, broken, final)

    def _judge(self, target: Model, result: AttackResult, labels: Tensor) -> Tensor:
        with torch.inference_mode(False), frozen(target):
            verdict = score(target, result.images, labels, LOSSES["margin"])
        check_numbers(verdict.loss)
        return verdict.success
