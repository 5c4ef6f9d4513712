"""Losses that attacks raise, one value an image; what the search differentiates is their sum.

With a sum, unlike a mean, an image's gradient does not depend on how many others are in its batch.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

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


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin}
