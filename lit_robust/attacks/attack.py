"""What every attack is: labelled images in, adversarial images and a verdict on each out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lit_robust.attacks.draws import Generators
from lit_robust.attacks.flags import Flags
from lit_robust.core.arrays import Numbers, as_tensor
from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of

Model = Callable[[Tensor], Tensor]
"""Float images ``[B, C, H, W]`` in [0, 1] to logits ``[B, num_classes]``; in practice an ``nn.Module``.

An output of several parts, such as a dict, is taken as ``logits_of`` says.
"""

# A weighted mean of two pixels may pass 1 by a rounding error; a normalised image passes it by far more.
RANGE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class AttackResult:
    """Adversarial images and what the network makes of them, scored in fp32 whatever the precision of the attack.

    Attributes:
        images: float32 ``[B, C, H, W]`` in [0, 1], at most eps * (1 + 1e-6) + 6e-8 from the clean ones: a norm's and
            a pixel's rounding.
        success: bool ``[B]``, true where the returned image is misclassified; ties go to the lower class number.
        loss: float32 ``[B]``, the attack's own loss at the returned image, higher for a worse mistake.
        steps: int64 ``[B]``, gradients of each image's loss that were computed, over all restarts.
        vanished: int64 ``[B]``, how many of these were zero or not finite, and so led nowhere. An image of which all
            were has never moved, and that it withstood says nothing.
        probabilities: bool ``[B]``, true where the network's answer is in [0, 1] and sums to 1, so that it may be the
            output of a softmax, whose gradients vanish.
    """

    images: Tensor
    success: Tensor
    loss: Tensor
    steps: Tensor
    vanished: Tensor
    probabilities: Tensor

    @property
    def flags(self) -> Flags:
        """Signs that the verdicts may be too good; waits for an accelerator."""
        signs = (
            self.probabilities,
            self.vanished > 0,
            ~self.success & (self.vanished > 0) & (self.vanished == self.steps),
        )
        probabilities, zero_gradient, unmoved = torch.stack(signs).sum(1).tolist()
        return Flags(
            images=len(self.success), probabilities=probabilities, zero_gradient=zero_gradient, unmoved=unmoved
        )


class Attack(ABC):
    """A threat model with the search that explores it; it holds settings only, and no network.

    Calling an attack leaves the network as it was: train/eval mode of every sub-module, ``requires_grad`` and
    ``.grad`` of every parameter, running statistics and the global random state. It may be called under
    ``torch.inference_mode``, ``torch.no_grad`` and ``torch.autocast``. Give it the network itself, never a
    DistributedDataParallel wrapper.

    Attributes:
        norm: what eps is measured in, ``l2`` or ``linf``.
        eps: radius, in [0, 1] pixel units.
    """

    norm: str
    eps: float

    @abstractmethod
    def __call__(
        self, model: Model, images: Numbers, labels: Numbers, *, generator: Generators | None = None
    ) -> AttackResult:
        """Attack the images and score what came out; for evaluation.

        Args:
            model: float images in [0, 1] to logits; an ``nn.Module`` is attacked in eval mode.
            images: float32 ``[B, C, H, W]`` in [0, 1], as a tensor, a NumPy array or lists.
            labels: int64 ``[B]``, the true classes, likewise.
            generator: source of every random draw: one for the batch, or one for each image, which makes an image's
                result independent of the batch it comes in.

        Raises:
            UserError: images, labels or generator are not as above, or the loss at a returned image is not a number.
        """

    def perturb(self, model: Model, images: Numbers, labels: Numbers, *, generator: Generators | None = None) -> Tensor:
        """Return the adversarial images alone, float32 ``[B, C, H, W]``; for training.

        Args and errors are those of a call. An attack that needs no verdict on its result saves that forward pass.
        """
        return self(model, images, labels, generator=generator).images

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values; a result measured with this attack carries them."""

    @abstractmethod
    def with_eps(self, eps: float) -> Self:
        """Return the same attack at another radius, its step size scaled in proportion.

        Args:
            eps: the new radius, in [0, 1] pixel units.

        Raises:
            UserError: the new settings are no valid attack, or this attack's own eps is 0.
        """


def as_batch(model: Model, images: Numbers, labels: Numbers) -> tuple[Tensor, Tensor]:
    """Return images and labels as tensors, what is none on the network's device, and refuse a wrong type or shape.

    Values are not read, so this never waits for an accelerator.

    Args:
        model: whose device it is, if it is an ``nn.Module``.
        images: float32 ``[B, C, H, W]``; of what is no tensor float64, too.
        labels: int64 ``[B]``; of what is no tensor any whole numbers.

    Raises:
        UserError: they are of another type or shape.
    """
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    device = None if parameter is None else parameter.device
    taken, numbers = as_tensor("images", images, device), as_tensor("labels", labels, device)
    if not isinstance(images, Tensor) and taken.dtype == torch.float64:
        taken = taken.float()  # What NumPy and Python compute in.
    if not isinstance(labels, Tensor) and not (numbers.is_floating_point() or numbers.dtype == torch.bool):
        numbers = numbers.long()
    check_batch(taken, numbers)
    return taken, numbers


def check_batch(images: Tensor, labels: Tensor) -> None:
    """Refuse a batch of the wrong type or shape; reads no values, so it never waits for an accelerator.

    Raises:
        UserError: images are not float32 ``[B, C, H, W]`` or labels are not int64 ``[B]``.
    """
    if images.dtype != torch.float32:
        raise UserError(
            f"Images are {images.dtype}, attacks take float32 in [0, 1]: divide uint8 images by 255, and instead of "
            "a half precision for everything use bf16-mixed."
        )
    if images.ndim != 4:
        raise UserError(f"Images have shape {list(images.shape)}: attacks take [batch, channels, height, width].")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise UserError(
            f"Labels are {labels.dtype} of shape {list(labels.shape)} for {len(images)} images: give one int64 class "
            "an image."
        )


def check_range(images: Tensor) -> None:
    """Refuse images that are not in [0, 1]; reads values, so it waits for an accelerator.

    Raises:
        UserError: some pixel is below 0, above 1, or not a number.
    """
    if images.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise UserError(
            f"Images reach from {low:.3g} to {high:.3g}, attacks take [0, 1]: leave normalisation to the model's first "
            "layer and divide 8-bit values by 255."
        )


def within_classes(model: Model, labels: Tensor, what: str) -> Model:
    """Return the network, refusing to answer where a label is none of its classes; waits for an accelerator once.

    Only a network's answer says how many classes it has, and on a GPU a loss of such a label ends the process.

    Args:
        model: float images in [0, 1] to logits ``[B, num_classes]``.
        labels: int64 ``[B]``; ``B`` may be 0.
        what: what to call a label, such as ``label``.

    Raises:
        UserError: when called, a label is not from 0 to ``num_classes - 1``.
    """
    if not len(labels):
        return model
    lowest, highest = torch.stack(torch.aminmax(labels)).tolist()

    def answer(images: Tensor) -> Tensor:
        logits = logits_of(model(images))
        last = logits.shape[1] - 1
        if lowest < 0 or highest > last:
            raise UserError(
                f"An image has {what} {lowest if lowest < 0 else highest}, where the network's classes go from 0 to "
                f"{last}: attack a network of the images' classes."
            )
        return logits

    return answer
