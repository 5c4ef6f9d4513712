"""AugMix: chains of augmentations mixed, and one answer asked for on all views (Hendrycks et al. 2020)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.models import Network
from lit_robust.modules.augmix_operations import NOTHING, OPERATIONS, apply, plan
from lit_robust.modules.base import ClassifierModule
from lit_robust.modules.optimisation import Optimisation

DEEPEST = 3  # Operations in the longest chain that is drawn.


@dataclass(frozen=True)
class AugMix:
    """How views of an image are made, and how much their agreement counts.

    The defaults are those of google-research/augmix for ImageNet (``imagenet.py``).

    Attributes:
        severity: strength of an operation is uniform from 0.1 to this, of 10; 1 or more, 10 at most.
        width: chains that are mixed.
        depth: operations in a chain; null draws 1 to 3.
        alpha: chains are weighted by Dirichlet(alpha, ...), and their mixture against the image by Beta(alpha, alpha).
        consistency: weight of the Jensen-Shannon divergence of the three answers, beside the cross-entropy.
    """

    severity: float = 1.0
    width: int = 3
    depth: int | None = None
    alpha: float = 1.0
    consistency: float = 12.0

    def __post_init__(self) -> None:
        if not 1 <= self.severity <= 10:
            raise UserError(f"AugMix severity is {self.severity}: give 1 to 10.")
        if self.width < 1 or (self.depth is not None and self.depth < 1):
            raise UserError(f"AugMix width is {self.width} and depth {self.depth}: give 1 or more; depth may be null.")
        if not self.alpha > 0 or self.consistency < 0:
            raise UserError(
                f"AugMix alpha is {self.alpha} and consistency {self.consistency}: give above 0, and 0 or more."
            )

    def view(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return one augmented view of each image, float32 ``[B, 3, H, W]`` in [0, 1].

        Args:
            images: float ``[B, 3, H, W]`` in [0, 1].
            random: source of every draw.
        """
        count, deepest = len(images), self.depth or DEEPEST
        weights = random.dirichlet([self.alpha] * self.width, count)
        blend = random.beta(self.alpha, self.alpha, (count, 1))
        shape = (self.width, deepest, count)
        operations = random.integers(OPERATIONS, size=shape)
        if self.depth is None:
            depths = random.integers(1, DEEPEST + 1, (self.width, 1, count))
            operations[np.arange(deepest)[:, None] >= depths] = NOTHING
        amounts = random.uniform(0.1, self.severity, shape) * random.choice([-1.0, 1.0], shape)
        shares = torch.from_numpy(np.hstack((1 - blend, blend * weights)).T.astype(np.float32)).to(images.device)
        shares = shares.view(self.width + 1, count, 1, 1, 1)
        pixels = (images.float() * 255).round()
        mixed = shares[0] * pixels
        every_step = (self.width * deepest, count)
        steps = plan(operations.reshape(every_step), amounts.reshape(every_step), images)
        for chain in range(self.width):
            changed = pixels
            for step in range(deepest):
                changed = apply(changed, steps[chain * deepest + step])
            mixed = mixed + shares[chain + 1] * changed
        return (mixed / 255).clamp(0, 1)


class AugMixModule(ClassifierModule):
    """A classifier trained on clean images, that answers the same on two augmented views of each.

    The three views go through the network as one batch, so batch norm sees all of them; the cross-entropy is the clean
    view's, as in google-research/augmix. Views are made on the training device.

    Args:
        network: which network, with which weights.
        optimisation: optimiser, schedule and label smoothing; used by ``fit`` alone.
        augmix: how views are made, and how much their agreement counts.
    """

    def __init__(
        self, network: Network = Network(), optimisation: Optimisation = Optimisation(), augmix: AugMix = AugMix()
    ) -> None:
        super().__init__(network, optimisation)
        self.augmix = augmix
        self.keep_hyperparameters(network=network, optimisation=optimisation, augmix=augmix)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the clean view's cross-entropy and the weighted divergence of the three answers."""
        seed = stream_seed(run_seed(), "augmix", self.current_epoch, batch_idx, self.global_rank)
        random = np.random.Generator(np.random.PCG64(seed))
        views = [batch.image, self.augmix.view(batch.image, random), self.augmix.view(batch.image, random)]
        answers = self.model(torch.cat(views)).view(len(views), len(batch), -1)
        divergence = jensen_shannon(answers)
        loss = self.loss(answers[0], batch.label) + self.augmix.consistency * divergence
        self.log("train/divergence", divergence.detach(), batch_size=len(batch))
        self.log_training(loss, answers[0], batch.label)
        return loss


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return how far several answers to the same images differ, in nats: 0 to ln(views), the batch's mean.

    It is the mean Kullback-Leibler divergence of the answers from their mean, computed from logarithms; the public code
    bounds the mean's probabilities by 1e-7 from below instead.

    Args:
        logits: ``[views, B, num_classes]``.
    """
    logs = logits.float().log_softmax(-1)
    mixture = logs.logsumexp(0) - math.log(len(logs))
    return (logs.exp() * (logs - mixture)).sum(-1).mean()
