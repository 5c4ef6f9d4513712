from typing import Any

import numpy as np
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


@pytest.mark.parametrize("attack", ATTACKS)
def test_arrays_and_lists_are_taken_as_tensors_are(attack: Attack) -> None:
    expected = attack(five_logits, IMAGES, LABELS, generator=torch.Generator().manual_seed(0))
    kinds = [
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES.double().numpy(), LABELS.numpy().astype(np.int32)),
        (IMAGES.numpy().astype(">f4"), [0, 1]),
        (IMAGES.tolist(), (0, 1)),
    ]
    for images, labels in kinds:
        found = attack(five_logits, images, labels, generator=torch.Generator().manual_seed(0))
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.success, expected.success)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        ((IMAGES * 255).byte().numpy(), [0, 1], "Images are torch.uint8, attacks take float32"),
        (IMAGES.numpy(), [0.0, 1.0], "Labels are torch.float64"),
        (IMAGES.numpy(), ["cat", "dog"], "labels is of type list: give a tensor, a NumPy array or a list of numbers"),
        (object(), [0, 1], "images is of type object: give a tensor"),
    ],
)
def test_other_arrays_and_lists_are_refused_by_name(images: Any, labels: Any, sentence: str) -> None:
    for attack in (PGD(eps=0.5), APGD(steps=3), CachePaperAttack()):
        with pytest.raises(UserError, match=sentence):
            attack(five_logits, images, labels, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=sentence):
        PGD(eps=0.5).perturb(five_logits, images, labels)


def test_numbers_of_numpy_are_settings_and_words_are_none() -> None:
    assert PGD("linf", np.float32(0.03), steps=np.int64(3)).protocol()["eps"] == pytest.approx(0.03)
    for wrong, sentence in (
        (lambda: PGD(norm="L2"), "PGD norm is 'L2': choose one of l1, l2, linf"),  # type: ignore[arg-type]
        (lambda: PGD(norm=2), "PGD norm is 2: choose one of"),  # type: ignore[arg-type]
        (lambda: PGD(steps=2.5), "PGD steps is 2.5: give a whole number, 0 or more"),  # type: ignore[arg-type]
        (lambda: PGD(eps=[0.5]), r"PGD eps is \[0.5\]: give a number"),  # type: ignore[arg-type]
        (lambda: APGD(rho="high"), "APGD rho is 'high': give a number"),  # type: ignore[arg-type]
        (lambda: FAB(beta=None), "FAB beta is None: give a number"),  # type: ignore[arg-type]
        (lambda: Square(queries=True), "Square queries is True: give a whole number"),
    ):
        with pytest.raises(UserError, match=sentence):
            wrong()


def five_logits(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :5]
