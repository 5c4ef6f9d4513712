"""What all attacks on survivors share: the record, and verdicts in fp32."""

import pytest
import torch
from torch import Tensor, nn

from lit_robust.attacks.apgd import APGD
from lit_robust.attacks.ascent import Ball
from lit_robust.attacks.fab import FAB
from lit_robust.attacks.losses import margin
from lit_robust.attacks.norms import Linf
from lit_robust.attacks.square import Square
from lit_robust.attacks.survivors import Record, SurvivorAttack

ATTACKS = [
    APGD("linf", 0.0105, 10, "dlr", targets=2),
    APGD("l2", 0.15, 10),
    FAB("l2", 0.15, 10, 3),
    Square("linf", 0.02, 100),
]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def linear(images: Tensor) -> Tensor:
    """Logits that are an image's three pixels."""
    return images.flatten(1)


def test_the_record_keeps_what_breaks_and_else_what_comes_nearest() -> None:
    clean = torch.tensor([[0.9, 0.1, 0.2], [0.9, 0.1, 0.2], [0.1, 0.9, 0.2]]).view(3, 3, 1, 1)
    record = Record(linear, Ball(clean, Linf(), 1.0), torch.tensor([0, 0, 0]), margin)
    assert record.survivors().tolist() == [0, 1]
    assert record.ranked_targets(5).tolist() == [[2, 1], [2, 1], [1, 2]]
    nearer = torch.tensor([[0.8, 0.1, 0.7], [0.8, 0.1, 0.1]]).view(2, 3, 1, 1)
    assert record.judge(torch.tensor([0, 1]), nearer).tolist() == [False, False]
    assert torch.equal(record.images, torch.stack([nearer[0], clean[1], clean[2]]))
    torch.testing.assert_close(record.losses, torch.tensor([-0.1, -0.7, 0.8]))
    broken = torch.tensor([0.3, 0.4, 0.1]).view(1, 3, 1, 1)
    assert record.judge(torch.tensor([1]), broken).tolist() == [True]
    assert record.survivors().tolist() == [0]
    assert torch.equal(record.images[1], broken[0])


def test_an_image_that_breaks_is_kept_even_where_its_loss_is_lower() -> None:
    clean = torch.tensor([0.1, 0.0, 0.0]).view(1, 3, 1, 1)
    # The loss is the right logit, negated; the wrong one overtakes it all the same.
    broken = torch.tensor([0.9, 1.0, 0.0]).view(1, 3, 1, 1)
    record = Record(linear, Ball(clean, Linf(), 1.0), torch.tensor([0]), lambda logits, _: -logits[:, 0])
    assert record.judge(torch.tensor([0]), broken).tolist() == [True]
    assert torch.equal(record.images, broken)
    assert record.losses.tolist() == pytest.approx([-0.9])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_verdicts_are_in_fp32_under_autocast(
    network: nn.Module, images: Tensor, labels: Tensor, attack: SurvivorAttack
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = attack(network, images, labels, generator=generators(8))
    assert result.images.dtype == result.loss.dtype == torch.float32
    offset = (result.images - images).flatten(1).double()
    length = offset.norm(dim=1) if attack.norm == "l2" else offset.abs().amax(1)
    # Adding the offset to a pixel near 1 rounds to 6e-8; bf16 would miss by a thousandth.
    assert length.max() <= attack.eps * (1 + 1e-6) + 6e-8
    with torch.no_grad():
        assert torch.equal(result.success, network(result.images).argmax(1) != labels)
    assert 0 < int(result.success.sum()) < 8


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_the_same_numbers_give_the_same_images(
    network: nn.Module, images: Tensor, labels: Tensor, attack: SurvivorAttack
) -> None:
    first = attack(network, images, labels, generator=torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    again = attack(network, images, labels, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first.images, again.images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        attack.perturb(network, images, labels, generator=torch.Generator().manual_seed(3)), again.images
    )
    assert attack.with_eps(0.2).eps == 0.2
    assert attack.protocol()["name"] == type(attack).__name__
