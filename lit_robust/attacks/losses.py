"""Losses that attacks raise, one value an image, and objectives; what the search differentiates is their sum.

With a sum, unlike a mean, an image's gradient does not depend on how many others are in its batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks.norms import Generators, draw_uniform
from lit_robust.core.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``[B, num_classes]`` and labels ``[B]`` to float32 values ``[B]``, higher for a worse mistake."""

SOFT_SPREAD = 3.0
"""Standard deviation over classes that logits of a saturated softmax are divided to, as in a network of usual training,
where all other classes weigh in. An attack then finds what it finds on the same network with smaller logits."""

SOFT_LEAD = 6.0
"""By how much the first logit leads once those of a saturated softmax are divided, at most. One that stands out from a
thousand would be saturated again."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image in nats, or its margin, which is negative, where fp32 has 0 nats.

    There the softmax is saturated, and the loss as torch computes it has no gradient, however near another class is.
    The gradient is then that of the cross-entropy of logits divided to ``SOFT_SPREAD``, or to ``SOFT_LEAD``.
    A larger value is a worse mistake all the same: 0 nats are a margin of -16 or less.
    """
    logits = logits.float()
    nats = F.cross_entropy(logits, labels, reduction="none")
    lead = -margin(logits, labels).detach()
    saturated = (nats == 0) & lead.isfinite()
    soft = F.cross_entropy(logits / _divisor(logits, lead, saturated), labels, reduction="none")
    return torch.where(saturated, soft - soft.detach() - lead, nats)


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """Return KL(clean answer || answer) of each image in nats, or a negative value where both are saturated.

    As in ``cross_entropy``, logits are then divided so that the clean answer's first leads by ``SOFT_LEAD``, and
    -1 / (1 + nats) of these stands for the nats of the others, which are lower than any that fp32 can tell from 0.

    Args:
        logits: ``[B, num_classes]``.
        clean: the same shape, log-probabilities of the clean images.
    """
    answer = logits.float().log_softmax(1)
    first = clean.argmax(1)
    lead = -margin(clean, first)
    saturated = (clean.amax(1) == 0) & (answer.gather(1, first[:, None])[:, 0] == 0) & lead.isfinite()
    divisor = _divisor(clean, lead, saturated)
    soft = _kl((answer / divisor).log_softmax(1), (clean / divisor).log_softmax(1))
    return torch.where(saturated, -1 / (1 + soft), _kl(answer, clean))


def _divisor(logits: Tensor, lead: Tensor, saturated: Tensor) -> Tensor:
    """Return what to divide each image's logits by, ``[B, 1]``; 1 where they are not saturated."""
    spread = logits.detach().std(1, correction=0)
    # The maximum of the two, and the lead where a class cannot be, whose spread is not a number.
    return torch.where(saturated, torch.fmax(spread / SOFT_SPREAD, lead / SOFT_LEAD), 1.0)[:, None]


def _kl(answer: Tensor, clean: Tensor) -> Tensor:
    return F.kl_div(answer, clean, log_target=True, reduction="none").sum(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the highest wrong logit minus the right one: positive where misclassified.

    Its gradient does not vanish where the network is certain (Carlini and Wagner 2017, section V-A, function f6
    without the floor).
    """
    right = logits.float().gather(1, labels[:, None])
    wrong = logits.float().scatter(1, labels[:, None], float("-inf")).amax(1)
    return wrong - right[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio, which no scaling of the logits changes (Croce and Hein 2020).

    As ``dlr_loss`` in ``autopgd_base.py`` of fra31/auto-attack.

    Raises:
        UserError: fewer than three classes.
    """
    _need_classes(logits, 3, "dlr")
    ranked = logits.float().sort(1, descending=True).values
    return margin(logits, labels) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the ratio for a target class (Croce and Hein 2020): highest where the target leads the label.

    As ``dlr_loss_targeted`` in ``autopgd_base.py`` of fra31/auto-attack.

    Raises:
        UserError: fewer than four classes.
    """
    _need_classes(logits, 4, "targeted dlr")
    logits = logits.float()
    ranked = logits.sort(1, descending=True).values
    lead = logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])
    return lead[:, 0] / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)


def _need_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        raise UserError(f"Loss {name} compares {least} logits, the network has {logits.shape[1]}: use cross_entropy.")


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


LossName = Literal["cross_entropy", "margin", "dlr", "kl"]
TargetName = Literal["none", "random", "least_likely"]


TARGETED: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, _, targets: -cross_entropy(logits, targets),
    "margin": lambda logits, _, targets: -margin(logits, targets),
    "dlr": dlr_targeted,
}
"""Logits ``[B, num_classes]``, labels ``[B]`` and targets ``[B]`` to values ``[B]``, higher nearer to the target."""


@dataclass(frozen=True)
class Objective:
    """The loss of each image of a batch, and when its search is over.

    Attributes:
        name: which loss.
        labels: int64 ``[B]``, the true classes.
        targets: int64 ``[B]``, the classes to be mistaken for; null where any mistake will do.
        clean: ``[B, num_classes]``, log-probabilities of the clean images, which loss ``kl`` compares with.
    """

    name: LossName
    labels: Tensor
    targets: Tensor | None = None
    clean: Tensor | None = None

    def loss(self, logits: Tensor) -> Tensor:
        """Return the float32 values ``[B]`` that the attack raises."""
        if self.targets is not None:
            return TARGETED[self.name](logits, self.labels, self.targets)
        if self.clean is not None:
            return divergence(logits, self.clean)
        return LOSSES[self.name](logits, self.labels)

    def reached(self, answers: Tensor) -> Tensor:
        """Tell for each of the classes ``[B]`` that the network says whether it is what the attack wants."""
        return answers != self.labels if self.targets is None else answers == self.targets

    def select(self, chosen: Tensor) -> "Objective":
        """Return the objective of the images that ``chosen``, bool ``[B]`` or int64 rows, names."""
        targets = None if self.targets is None else self.targets[chosen]
        return Objective(self.name, self.labels[chosen], targets, None if self.clean is None else self.clean[chosen])


def random_targets(labels: Tensor, num_classes: int, generator: Generators) -> Tensor:
    """Return for each label another class, int64 ``[B]``, uniform over all others.

    Raises:
        UserError: there is no other class.
    """
    if num_classes < 2:
        raise UserError("A network of one class has no other to be mistaken for: attack one with two or more.")
    other = (draw_uniform(labels.shape, generator, labels.device) * (num_classes - 1)).long()
    return other + (other >= labels)
