"""Losses that attacks raise, one value an image; what the search differentiates is their sum.

With a sum, unlike a mean, an image's gradient does not depend on how many others are in its batch.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from lit_robust.core.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``[B, num_classes]`` and labels ``[B]`` to float32 values ``[B]``, higher for a worse mistake."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image, in nats."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


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
