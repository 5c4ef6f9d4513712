from typing import Any

import pytest
import torch
from torch import Tensor

from lit_robust.attacks import APGD, FAB, PGD, Attack, AttackResult, AutoAttack, CachePaperAttack, Square
from lit_robust.attacks.attack import check_batch, check_range, within_classes
from lit_robust.core.errors import UserError

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1])
ATTACKS: list[Attack] = [
    PGD(eps=0.5),
    PGD(eps=0.5, keep="first", target="least_likely"),
    PGD(eps=0.5, start="ball", restarts=2, target="random"),
    PGD(eps=0.5, start="ball", loss="kl"),
    APGD(steps=3),
    FAB(steps=3),
    Square(queries=3),
    AutoAttack(),
    CachePaperAttack(),
]


def test_perturb_of_an_attack_without_its_own_gives_the_images_of_a_call() -> None:
    class Invert(Attack):
        def __call__(self, model: Any, images: Tensor, labels: Tensor, *, generator: Any = None) -> AttackResult:
            return AttackResult(1 - images, labels != labels, torch.zeros(2), labels, labels, labels != labels)

        def protocol(self) -> dict[str, Any]:
            return {"name": "Invert"}

        def with_eps(self, eps: float) -> "Invert":
            return self

    assert torch.equal(Invert().perturb(lambda images: images, IMAGES, LABELS), 1 - IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        ((IMAGES * 255).to(torch.uint8), LABELS, "Images are torch.uint8"),
        (IMAGES.bfloat16(), LABELS, "bf16-mixed"),
        (IMAGES[0], LABELS, r"shape \[3, 4, 4\]"),
        (IMAGES, LABELS[:1], r"shape \[1\] for 2 images"),
        (IMAGES, LABELS.float(), "Labels are torch.float32"),
    ],
)
def test_a_batch_of_the_wrong_kind_is_refused(images: Tensor, labels: Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_batch(images, labels)


@pytest.mark.parametrize("images", [IMAGES * 255, IMAGES - 0.5, IMAGES * float("nan")])
def test_pixels_outside_zero_to_one_are_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"attacks take \[0, 1\]"):
        check_range(images)


def test_the_range_s_ends_rounding_and_no_images_are_fine() -> None:
    check_batch(IMAGES, LABELS)
    check_range(torch.tensor([0.0, 1.0 + 1e-6]))
    check_range(IMAGES[:0])


@pytest.mark.parametrize("label", [-1, 5])
@pytest.mark.parametrize("attack", ATTACKS)
def test_labels_that_are_none_of_the_network_s_classes_are_refused(attack: Attack, label: int) -> None:
    labels = torch.tensor([0, label])
    with pytest.raises(UserError, match=f"An image has label {label}, where the network's classes go from 0 to 4: "):
        attack(five_logits, IMAGES, labels, generator=torch.Generator().manual_seed(0))


def test_targets_are_classes_too_and_every_class_is_one() -> None:
    with pytest.raises(UserError, match="An image has target 7, where the network's classes go from 0 to 4: "):
        PGD(eps=0.5).towards(five_logits, IMAGES, LABELS, torch.tensor([7, 2]))
    assert len(PGD(eps=0.5).towards(five_logits, IMAGES, torch.tensor([0, 4]), torch.tensor([4, 0])).success) == 2
    assert within_classes(five_logits, LABELS[:0], "label") is five_logits


def five_logits(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :5]
