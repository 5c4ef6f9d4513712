"""Networks whose gradients vanish: found through, where the logits allow it, and counted, where they do not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_robust.attacks import APGD, FAB, PGD, Attack, CachePaperAttack, Flags, Square, Sweep

ATTACKS = [
    PGD(eps=0.4, step_size=0.2, steps=5),
    PGD("linf", 0.02, 0.005, 5, start="ball", keep="best", restarts=2),
    PGD(eps=0.4, step_size=0.1, steps=5, keep="first"),
    PGD(eps=0.4, step_size=0.2, steps=5, start="ball", loss="kl"),
    PGD(eps=0.4, step_size=0.2, steps=5, start="ball", loss="kl", keep="best"),
    PGD(eps=0.4, step_size=0.2, steps=5, loss="margin"),
    PGD(eps=0.6, step_size=0.1, steps=8, target="least_likely"),
    APGD("l2", 0.4, 10),
    APGD("linf", 0.02, 10, loss="dlr"),
    FAB("l2", 0.4, 5, 2),
    CachePaperAttack(0.03, 0.005),
]
Trained = tuple[nn.Module, Tensor, Tensor]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: "-".join(map(str, attack.protocol().values())))
def test_a_network_scaled_by_a_thousand_is_as_robust(trained: Trained, attack: Attack) -> None:
    network, images, labels = trained
    plain = attack(network, images, labels, generator=generators(200))
    scaled = attack(lambda images: 1000 * network(images), images, labels, generator=generators(200))
    assert 0.1 < plain.success.float().mean() < 0.9
    # Two points of a hundred are four images of 200.
    assert abs(int(plain.success.sum()) - int(scaled.success.sum())) <= 4
    assert scaled.flags.unmoved == 0


def test_so_it_is_in_a_sweep_over_eps(trained: Trained) -> None:
    network, images, labels = trained
    attacks = [PGD(eps=eps, step_size=eps / 4, steps=5, start="ball") for eps in (0.1, 0.3, 0.5)]

    def curve(model: Any) -> list[int]:
        sweep = Sweep(attacks, 64, model, None, lambda number: torch.Generator().manual_seed(number))
        found = [*sweep.add(range(200), images, labels), *sweep.finish()]
        return [sum(int((~one.broken).sum()) for one in found if one.strength == rank) for rank in range(3)]

    plain, scaled = curve(network), curve(lambda images: 1000 * network(images))
    assert 195 > plain[0] > plain[1] > plain[2] > 20
    assert scaled == pytest.approx(plain, abs=4)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: "-".join(map(str, attack.protocol().values())))
def test_a_gradient_of_zero_is_counted_at_every_step(trained: Trained, attack: Attack) -> None:
    network, images, labels = trained

    def hidden(images: Tensor) -> Tensor:
        return network((images * 255).round() / 255) + 0 * images.sum((1, 2, 3))[:, None]

    images = (images[:20] * 255).round() / 255
    with torch.no_grad():
        labels = network(images).argmax(1)
    result = attack(hidden, images, labels, generator=generators(20))
    assert torch.equal(result.vanished, result.steps)
    assert result.flags == Flags(images=20, zero_gradient=20, unmoved=int((~result.success).sum()))
    assert f"of which {result.flags.unmoved} withstood and never moved" in result.flags.sentences()[0]


def test_a_gradient_that_vanishes_on_the_way_is_counted_but_not_as_unmoved() -> None:
    def ramp(images: Tensor) -> Tensor:
        # Flat from 0.55 on, where the first step leads, and from there there is no way back.
        height = images.clamp(max=0.55).mean((1, 2, 3))
        return torch.stack([0 * height, height - 1], 1)

    images, labels = torch.full((3, 3, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    images[2] = 0.7
    result = PGD("linf", 0.2, 0.1, 4)(ramp, images, labels)
    assert result.vanished.tolist() == [3, 3, 4]
    assert result.flags == Flags(images=3, zero_gradient=3, unmoved=1)


def test_probabilities_are_told_from_logits(trained: Trained) -> None:
    network, images, labels = trained
    for attack in ATTACKS:
        result = attack(lambda images: network(images).softmax(1), images[:20], labels[:20], generator=generators(20))
        assert result.flags.probabilities == 20
        assert "attack its logits, before the softmax" in result.flags.sentences()[0]
        assert attack(network, images[:20], labels[:20], generator=generators(20)).flags.probabilities == 0
    # Square asks for no gradient, so none can vanish.
    square = Square(eps=0.02, queries=5)(
        lambda images: network(images).softmax(1), images[:20], labels[:20], generator=generators(20)
    )
    assert square.flags.sentences() == []
