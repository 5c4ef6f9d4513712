"""What every attack is: labelled images in, adversarial images and a verdict on each out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lit_robust.attacks.losses import Loss
from lit_robust.attacks.norms import NORMS, Generators
from lit_robust.core.arrays import Numbers, as_tensor
from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of
from lit_robust.core.precision import full_precision

Model = Callable[[Tensor], Tensor]
"""Float images ``[B, C, H, W]`` in [0, 1] to logits ``[B, num_classes]``; in practice an ``nn.Module``.

An output of several parts, such as a dict, is taken as ``logits_of`` says.
"""

PROBABILITY = 1e-5  # The tolerance of ``checks.py`` of fra31/auto-attack.
MOST_GAINED_BY_SQUARE = 0.002  # Share of all images.
# A weighted mean of two pixels may pass 1 by a rounding error; a normalised image passes it by far more.
RANGE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Flags:
    """How many images of a batch show each sign; ``+`` adds up batches.

    Attributes:
        images: how many there were, ``unattacked`` included.
        randomised: whose logits, scaled to length 1, differ by more than 1e-4 between two fp32 forward passes, or whose
            class does; looked at by `AutoAttack` alone, and not by its version ``rand``, which is for such networks.
        probabilities: whose logits are in [0, 1] and sum to 1.
        zero_gradient: where the gradient was zero or not finite, at the start of a search or on the way.
        unmoved: which withstood and of which every gradient was so, so that the attack never moved them.
        gained_by_square: broken by Square after every search with gradients had failed; looked at by `AutoAttack`.
        unattacked: known to be broken before, so not given to the attack and not looked at for any sign.
    """

    images: int = 0
    randomised: int = 0
    probabilities: int = 0
    zero_gradient: int = 0
    unmoved: int = 0
    gained_by_square: int = 0
    unattacked: int = 0

    def __add__(self, other: "Flags") -> "Flags":
        return Flags(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def sentences(self) -> list[str]:
        """Return what is to be feared, one sentence a sign; signs and limits are of fra31/auto-attack, flags_doc.md."""
        found, seen = [], self.images - self.unattacked
        if self.randomised:
            found.append(
                f"The network answers {self.randomised} of {seen} images differently each time, which misleads "
                "searches that take it for a fixed function: use AutoAttack version rand."
            )
        if seen and self.probabilities == seen:
            found.append(
                "The network gives probabilities, whose gradients vanish where it is sure: attack its logits, before "
                "the softmax."
            )
        if self.zero_gradient:
            found.append(
                f"The gradient was zero or not finite for {self.zero_gradient} of {seen} images, of which "
                f"{self.unmoved} withstood and never moved, so the network may hide it and look too robust: attack a "
                "differentiable stand-in (a memory's threat_model memory-surrogate), or use Square."
            )
        if self.gained_by_square > MOST_GAINED_BY_SQUARE * self.images:
            found.append(
                f"Square broke {self.gained_by_square} of all {self.images} images after they had withstood all "
                "gradients, so these may be masked: run Square with more queries, or an attack made for this network."
            )
        return found


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
        vanished = self.vanished > 0
        signs = torch.stack((self.probabilities, vanished, ~self.success & vanished & (self.vanished == self.steps)))
        counts = dict(zip(("probabilities", "zero_gradient", "unmoved"), signs.sum(1).tolist(), strict=True))
        return Flags(images=len(self.success), **counts)


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
        """Return the images of a call alone; for training. An attack that needs no verdict saves that forward pass."""
        return self(model, images, labels, generator=generator).images

    def protocol(self) -> dict[str, Any]:
        """Return every setting as plain values, those of a dataclass its fields; a result carries them."""
        settings = vars(self).items()
        return {"name": type(self).__name__, **{name: _plain(value) for name, value in settings}}

    def with_eps(self, eps: float) -> Self:
        """Return the same attack, a dataclass, at another radius; PGD's step size is scaled in proportion.

        Args:
            eps: the new radius, in [0, 1] pixel units.

        Raises:
            UserError: the new settings are not a valid attack, or this attack's own eps is 0.
        """
        return replace(self, eps=eps)  # type: ignore[type-var]


def check_attack(attack: object) -> None:
    """Raise a UserError unless something is an attack that has a norm and an eps, by which results are named."""
    if not isinstance(attack, Attack):
        what = f"{attack.__name__} itself" if isinstance(attack, type) else f"a {type(attack).__name__}"
        raise UserError(f"The attack is {what}: give an object, such as PGD(eps=1.0).")
    if lacks := [name for name in ("norm", "eps") if not hasattr(attack, name)]:
        raise UserError(f"The attack {type(attack).__name__} has no {lacks[0]}: give it a norm and an eps.")
    if not is_dataclass(attack):
        raise UserError(f"{type(attack).__name__} is not a dataclass: write @dataclass(frozen=True) above it.")


def _plain(value: object) -> object:
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def as_batch(model: Model, images: Numbers, labels: Numbers) -> tuple[Tensor, Tensor]:
    """Return images and labels as tensors, on the network's device if they were none, of the type and shape of a call.

    Of what is not a tensor float64 images and any whole numbers are taken, too. Values are not read, so this never
    waits for an accelerator.
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
    """Refuse images that are not float32 ``[B, C, H, W]``, and labels that are not int64 ``[B]``."""
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
    """Refuse images with a pixel below 0, above 1, or not a number; waits for an accelerator."""
    if images.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise UserError(
            f"Images reach from {low:.3g} to {high:.3g}, attacks take [0, 1]: leave normalisation to the model's first "
            "layer and divide 8-bit values by 255."
        )


def within_classes(model: Model, labels: Tensor, what: str) -> Model:
    """Return the network, refusing to answer where a label is not one of its classes; waits for an accelerator once.

    Only a network's answer says how many classes it has, and on a GPU a loss of such a label ends the process. An
    answer without a row of logits an image is refused, too. ``what`` is what to call a label.
    """
    if not len(labels):
        return model
    lowest, highest = torch.stack(torch.aminmax(labels)).tolist()

    def answer(images: Tensor) -> Tensor:
        logits = logits_of(model(images))
        if len(logits) != len(images):
            raise UserError(
                f"The network returns {len(logits)} rows of logits for {len(images)} images: one an image is needed."
            )
        last = logits.shape[1] - 1
        if lowest < 0 or highest > last:
            raise UserError(
                f"An image has {what} {lowest if lowest < 0 else highest}, where the network's classes go from 0 to "
                f"{last}: attack a network of the images' classes."
            )
        return logits

    return answer


@contextmanager
def frozen(model: Callable[..., Any]) -> Iterator[None]:
    """Put a network into eval mode without parameter gradients; restore every flag on the way out, errors included.

    Running statistics and dropout stay out of the attack, and no backward pass computes weight gradients. Frozen
    weights also stay out of autocast's cache of half-precision copies, where a copy made under ``no_grad`` or
    ``inference_mode`` would later be taken for the trained weight. Any other callable has nothing to freeze.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    # Flags are set one by one: `train()` would give a network's parts one common mode, and may be overridden.
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
            kept = getattr(module, "attention_bias_cache", None)
            if isinstance(kept, dict):
                # timm's LeViT, EfficientFormer and TinyViT fill it in eval mode: it is of the weights they had then.
                kept.clear()
        for parameter, _ in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


# The largest L2 radius, as a share of the largest distance of two images: 97 for 3 channels of 224 by 224, 14 for 32 by
# 32. Published ones end at 10 and 1 there (MadryLab/robustness); 0.5 on a scale to 255 is 127.5. In L1 it is 768 for 32
# by 32, where published ones are about 12.
LARGEST_SHARE = 0.25


def check_eps(name: str, value: float, norm: str) -> None:
    """Refuse a radius or step that is not a length, or of the wrong scale: 8 where 8 / 255 was meant.

    Args:
        name: of the setting, for the sentence, such as ``PGD eps``.
        value: in [0, 1] pixel units.
        norm: ``l1``, ``l2`` or ``linf``, where it ends at 1, black to white.
    """
    check_number(name, value)
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} is {value}: give a finite number, 0 or more, in [0, 1] pixel units.")
    if norm == "linf" and value > 1:
        raise UserError(
            f"{name} is {value:g} in linf, where 1 is black to white: did you mean {value:g}/255 = {value / 255:.5f}? "
            "Where another norm is chosen, choose its eps as well."
        )


def check_step(name: str, value: float, eps: float, norm: str) -> None:
    """Refuse a step of 0, or above 2 eps, which crosses the whole ball, as that of another norm would.

    Args:
        name: of the setting, for the sentence, such as ``PGD step_size``.
        value: in the unit of ``eps``; see `check_eps`, too.
        eps: the radius; at 0 any step will do.
        norm: ``l1``, ``l2`` or ``linf``.
    """
    check_eps(name, value, norm)
    if value == 0 < eps:
        raise UserError(f"{name} is 0: no image would move, and every network look robust. Give eps / 4, or null.")
    # In a recipe fractions are rounded.
    if 0 < 2 * eps * (1 + 1e-6) < value:
        raise UserError(
            f"{name} is {value:g} at {norm} eps {eps:g}: a step above 2 eps = {2 * eps:.4g} crosses the whole ball, so "
            "it may be meant for another norm or eps. Give a smaller one, such as eps / 4; PGD takes null, too."
        )


def check_number(name: str, value: float) -> None:
    """Refuse what is not a number, such as a word or a list."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"{name} is {value!r}: give a number.")


def check_reach(eps: float, norm: str, images: Tensor) -> None:
    """Refuse an L1 or L2 radius above a quarter of the largest distance of two such images, as 255 times a usual one.

    Of ``images``, ``[B, C, H, W]``, the shape alone is looked at.
    """
    if norm == "linf":
        return
    largest = LARGEST_SHARE * NORMS[norm].diameter(images.shape[1:])
    if eps > largest:
        raise UserError(
            f"{norm.upper()} eps {eps:g} is beyond {largest:.3g}, a quarter of the largest distance of two images of "
            f"shape {list(images.shape[1:])}: give eps in [0, 1] pixel units, where you may mean {eps:g}/255 = "
            f"{eps / 255:.3g}."
        )


def are_probabilities(logits: Tensor) -> Tensor:
    """Return which rows of ``logits`` ``[B, num_classes]`` are in [0, 1] and sum to 1, bool ``[B]``."""
    inside = (logits > -PROBABILITY).all(1) & (logits < 1 + PROBABILITY).all(1)
    return inside & ((logits.sum(1) - 1).abs() < PROBABILITY)


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
    """Refuse a loss of NaN; an infinite one is legal, as a class may have probability 0. Waits for an accelerator."""
    if undefined := int(loss.isnan().sum()):
        raise UserError(
            f"The loss is not a number for {undefined} of {len(loss)} attacked images: the network's logits "
            "overflow, so take a checkpoint from before it diverged, or attack it in float32."
        )


def clean_logits(model: Model, images: Tensor) -> Tensor:
    """Return fp32 logits of clean images, from a forward pass without gradients; the mode is the caller's business."""
    with torch.no_grad(), full_precision(images.device.type):
        return logits_of(model(images)).float()
