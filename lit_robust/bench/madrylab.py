"""A training step that costs what MadryLab/robustness' does, in a loop of our own."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.bench.subjects import PlainClassifier


def madrylab_step(model: PlainClassifier, sample: Batch, attack: PGD, every_gradient: bool) -> Callable[[], None]:
    """Return a step that takes the passes of ``attacker.py`` and ``train.py`` there, without their logging.

    Single precision and torch's memory layout; the gradient of the batch mean; the image of highest loss kept, for
    which the last iterate needs a pass more; then one step of SGD.

    Args:
        model: what is trained.
        sample: the batch of every step.
        attack: norm, eps, step size and steps.
        every_gradient: compute the gradients of all weights in each step of the attack, too, as torch did when that
            code was written; today ``autograd.grad`` leaves them out.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    weights = list(model.parameters()) if every_gradient else []

    def step() -> None:
        model.eval()
        clean, images = sample.image, sample.image.clone()
        best, best_losses = images, torch.full_like(sample.label, -torch.inf, dtype=torch.float32)
        for number in range(attack.steps + 1):
            images = images.detach().requires_grad_(True)
            losses = F.cross_entropy(model(images), sample.label, reduction="none")
            higher = losses > best_losses
            best = torch.where(higher.view(-1, 1, 1, 1), images, best).detach()
            best_losses = torch.where(higher, losses, best_losses).detach()
            if number == attack.steps:
                break
            gradient = torch.autograd.grad(losses.mean(), [images, *weights])[0]
            images = _move(attack, clean, images.detach(), gradient)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(best), sample.label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _move(attack: PGD, clean: Tensor, images: Tensor, gradient: Tensor) -> Tensor:
    if attack.norm == "linf":
        moved = images + attack.step_size * gradient.sign()
        return (clean + (moved - clean).clamp(-attack.eps, attack.eps)).clamp(0, 1)
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    offset = images + attack.step_size * gradient / (length + 1e-10) - clean
    projected: Tensor = clean + offset.renorm(p=2, dim=0, maxnorm=attack.eps)
    return projected.clamp(0, 1)
