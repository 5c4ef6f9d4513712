"""The verdict on images: fp32, whatever precision they were found in."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_robust.attacks.attack import Model
from lit_robust.attacks.flags import are_probabilities
from lit_robust.attacks.losses import Loss
from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of
from lit_robust.core.precision import full_precision


class Score(NamedTuple):
    """What a network makes of some images.

    Attributes:
        success: bool ``[B]``, true where the image is misclassified; ties go to the lower class number.
        loss: float32 ``[B]``.
        answer: int64 ``[B]``, the class the network says.
        probabilities: bool ``[B]``, true where the logits are in [0, 1] and sum to 1.
    """

    success: Tensor
    loss: Tensor
    answer: Tensor
    probabilities: Tensor


def score(model: Model, images: Tensor, labels: Tensor, loss: Loss) -> Score:
    """Run the network once, in fp32 and without gradients; its mode is the caller's business."""
    with torch.no_grad(), full_precision(images.device.type):
        logits = logits_of(model(images)).float()
        answer = logits.argmax(1)
        return Score(answer != labels, loss(logits, labels).float(), answer, are_probabilities(logits))


def check_numbers(loss: Tensor) -> None:
    """Refuse a verdict on logits that are not numbers; reads values, so it waits for an accelerator.

    An infinite loss is a legal answer: a class may have probability 0.

    Raises:
        UserError: some loss is NaN.
    """
    undefined = int(loss.isnan().sum())
    if undefined:
        raise UserError(
            f"The loss is not a number for {undefined} of {len(loss)} attacked images: the network's logits or "
            "gradients overflow, so take a checkpoint from before it diverged, or attack it in float32."
        )
