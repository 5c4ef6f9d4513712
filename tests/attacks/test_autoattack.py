"""AutoAttack: who broke what, its flags, and its verdicts against torchattacks."""

import json
from dataclasses import replace

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lit_robust.attacks.apgd import APGD
from lit_robust.attacks.attack import Attack, Flags
from lit_robust.attacks.autoattack import AutoAttack
from lit_robust.attacks.fab import FAB
from lit_robust.attacks.pgd import PGD
from lit_robust.attacks.square import Square
from lit_robust.attacks.survivors import NormName, SurvivorAttack
from lit_robust.core.errors import UserError

NAMES = ("clean", "apgd-ce", "apgd-t", "fab-t", "square")


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take 500 queries for 5,000, and means of 5 gradients for 20, so that the tests take seconds."""
    whole = AutoAttack.attacks

    def attacks(self: AutoAttack) -> dict[str, SurvivorAttack]:
        parts = dict(whole(self))
        for name, part in parts.items():
            if isinstance(part, Square):
                parts[name] = replace(part, queries=500)
            elif isinstance(part, APGD) and part.draws > 1:
                parts[name] = replace(part, draws=5)
        return parts

    monkeypatch.setattr(AutoAttack, "attacks", attacks)


def broken_by_torchattacks(network: nn.Module, attack: AutoAttack, images: Tensor, labels: Tensor) -> Tensor:
    """Which images its cascade breaks with the published 100 steps, of which it takes 10 by itself."""
    norm = {"l2": "L2", "linf": "Linf"}[attack.norm]
    theirs = torchattacks.AutoAttack(network, norm, attack.eps, attack.version, n_classes=10, seed=0)
    short = {"steps": 100, "n_queries": 500}
    if attack.version == "rand":
        short["eot_iter"] = 5
    for part in theirs._autoattack.attacks:
        for setting, value in short.items():
            if hasattr(part, setting):
                setattr(part, setting, value)
    found = theirs(images, labels)
    with torch.no_grad():
        broken: Tensor = network(found).argmax(1) != labels
    return broken


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.3)])
def test_it_breaks_what_torchattacks_breaks(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, norm: NormName, eps: float
) -> None:
    shortened(monkeypatch)
    images = torch.rand(16, 3, 10, 10, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    attack = AutoAttack(norm, eps)
    result = attack(network, images, labels, generator=generators(16))
    # The searches of both end well inside eps or well outside, whatever their random starts.
    assert torch.equal(result.success, broken_by_torchattacks(network, attack, images, labels))
    assert 6 < int(result.success.sum()) < 16
    assert result.names == NAMES
    assert result.code[0] == 0
    assert torch.equal(result.images[0], images[0])
    assert torch.equal(result.code >= 0, result.success)
    # Cross-entropy breaks nearly all that can be broken; what nothing breaks has gone through everything.
    assert int((result.code == 1).sum()) >= 3
    stood = ~result.success
    assert (result.queries[stood] == 501).all()
    assert (result.queries[~stood & (result.code != 4)] == 0).all()
    assert (result.steps[stood] == 100 + 900 + 900).all()
    with torch.no_grad():
        assert torch.equal(network(result.images).argmax(1) != labels, result.success)
    assert result.flags == Flags(images=16, gained_by_square=int((result.code == 4).sum()))
    assert result.flags.sentences() == []


def test_rand_breaks_what_torchattacks_breaks(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    shortened(monkeypatch)
    images = torch.rand(12, 3, 10, 10, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        labels = network(images).argmax(1)
    attack = AutoAttack("l2", 0.3, "rand")
    result = attack(network, images, labels, generator=generators(12))
    assert torch.equal(result.success, broken_by_torchattacks(network, attack, images, labels))
    assert 2 < int(result.success.sum()) < 12
    assert (result.steps[~result.success] == 2 * 100 * 5).all()


def test_an_image_s_result_depends_neither_on_its_batch_nor_on_who_survives(
    network: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = AutoAttack("l2", 0.15)
    short = {name: each.with_eps(0.15) for name, each in attack.attacks().items()}
    for each in short.values():
        for setting, value in (("steps", 8), ("targets", 2), ("queries", 120)):
            if getattr(each, setting, 0) > value:
                object.__setattr__(each, setting, value)
    monkeypatch.setattr(AutoAttack, "attacks", lambda _: short)
    with torch.inference_mode():
        together = attack(network, images, labels, generator=generators(8))
    assert 0 < int(together.success.sum()) < 8
    for index, source in enumerate(generators(8)):
        alone = attack(network, images[index, None], labels[index, None], generator=[source])
        assert alone.code[0] == together.code[index]
        assert alone.steps[0] == together.steps[index]
        assert alone.queries[0] == together.queries[index]
        # Other convolution kernels round differently; no sign amplifies it in L2.
        torch.testing.assert_close(alone.images[0], together.images[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "attack", [APGD("l2", 0.5, 4), Square("l2", 0.5, 30), FAB("l2", 0.5, 3), PGD("l2", 0.5, steps=3)]
)
def test_the_distance_is_eps_but_for_the_rounding_of_pixels(attack: Attack) -> None:
    def sides(images: Tensor) -> Tensor:
        left, right = images[..., :112].mean((1, 2, 3)), images[..., 112:].mean((1, 2, 3))
        return torch.stack([left, right, left - 1, right - 1], 1)

    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    images[..., :112] += 4e-4
    images = images.clamp(0, 1)
    with torch.no_grad():
        labels = sides(images).argmax(1)
    found = attack(sides, images, labels, generator=generators(2)).images
    length = (found.double() - images.double()).flatten(1).norm(dim=1)
    # What `AttackResult.images` promises, of 150,528 values, too.
    assert length.min() > 0
    assert length.max() <= 0.5 * (1 + 1e-6) + 6e-8


def test_masked_gradients_are_found_out(images: Tensor) -> None:
    steps = 64.0

    def masked(images: Tensor) -> Tensor:
        height = images[:, :, :, :6].mean((1, 2, 3)) - images[:, :, :, 6:].mean((1, 2, 3))
        height = (height * steps).round() / steps
        return torch.stack([height, -height, height * 0 - 1, height * 0 - 2], 1)

    with torch.no_grad():
        labels = masked(images).argmax(1)
    result = AutoAttack("linf", 0.1)(masked, images, labels, generator=generators(8))
    flags = result.flags
    square = int((result.code == 4).sum())
    assert square >= 3
    assert flags.gained_by_square == square
    # Rounding has no gradient, at whatever image.
    assert (flags.zero_gradient, flags.unmoved) == (8, int((~result.success).sum()))
    sentences = " ".join(flags.sentences())
    assert f"Square broke {square} of all 8 images after they had withstood all gradients" in sentences
    assert f"zero or not finite for {flags.zero_gradient} of 8 images, of which {flags.unmoved} withstood" in sentences
    assert flags.randomised == flags.probabilities == 0


def test_random_answers_and_probabilities_are_found_out(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    noise = torch.Generator().manual_seed(0)

    def shaken(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        # Ten times what two passes may differ by.
        return logits * (1 + 1e-3 * torch.randn(logits.shape, generator=noise))

    attack = AutoAttack("l2", 5.0)
    flags = attack(shaken, images, labels, generator=generators(8)).flags
    assert flags.randomised == 8
    assert "version rand" in flags.sentences()[0]
    flags = attack(lambda images: network(images).softmax(1), images, labels, generator=generators(8)).flags
    assert flags.probabilities == 8
    assert "before the softmax" in " ".join(flags.sentences())
    # One image that is no distribution clears the network.
    assert Flags(images=8, probabilities=7).sentences() == []
    # And one that nobody looked at does not.
    assert "before the softmax" in " ".join(Flags(images=8, probabilities=7, unattacked=1).sentences())
    rand = AutoAttack("l2", 5.0, "rand")(shaken, images, labels, generator=generators(8))
    assert rand.flags.randomised == 0
    assert rand.names == ("clean", "apgd-ce", "apgd-dlr")
    assert (rand.code == 1).all()


def test_flags_of_batches_add_up() -> None:
    total = sum([Flags(600, 1, 2, 3, 2, 1, 100), Flags(400, 10, 20, 30, 20, 1)], Flags())
    assert total == Flags(1000, 11, 22, 33, 22, 2, 100)
    assert "answers 11 of 900 images differently" in total.sentences()[0]
    # Square's limit, 0.2%, is one of the whole, not of a batch: 2 of 1,000 are on it.
    assert not any("Square broke" in sentence for sentence in total.sentences())
    assert any("Square broke" in sentence for sentence in (total + Flags(gained_by_square=1)).sentences())


def test_the_protocol_is_plain_and_complete() -> None:
    attack = AutoAttack("linf", 4 / 255)
    protocol = json.loads(json.dumps(attack.protocol()))
    assert protocol == attack.protocol()
    assert tuple(protocol["attacks"]) == NAMES[1:]
    settings = protocol["attacks"]
    assert (settings["apgd-ce"]["loss"], settings["apgd-ce"]["steps"]) == ("cross_entropy", 100)
    assert (settings["apgd-t"]["loss"], settings["apgd-t"]["targets"]) == ("dlr", 9)
    assert (settings["fab-t"]["steps"], settings["fab-t"]["targets"]) == (100, 9)
    assert (settings["square"]["queries"], settings["square"]["p_init"]) == (5000, 0.8)
    assert {each["eps"] for each in settings.values()} == {4 / 255}
    assert attack.with_eps(8 / 255) == AutoAttack("linf", 8 / 255)
    rand = AutoAttack(version="rand").protocol()["attacks"]
    assert {name: (each["loss"], each["draws"]) for name, each in rand.items()} == {
        "apgd-ce": ("cross_entropy", 20),
        "apgd-dlr": ("dlr", 20),
    }


def test_wrong_settings_are_refused_in_a_sentence(images: Tensor) -> None:
    with pytest.raises(UserError, match="AutoAttack eps is 8 in linf, .* did you mean 8/255"):
        AutoAttack(eps=8)
    with pytest.raises(UserError, match="AutoAttack version is 'plus': choose one of standard, rand"):
        AutoAttack(version="plus")  # type: ignore[arg-type]
    labels = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(UserError, match="AutoAttack standard compares 4 logits, the network has 3"):
        AutoAttack()(lambda images: images.mean((2, 3)), images, labels, generator=generators(8))
    with pytest.raises(UserError, match="AutoAttack needs random numbers"):
        AutoAttack()(lambda images: images.mean((2, 3)), images, labels)


def test_an_empty_batch_is_no_trouble(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    result = AutoAttack()(network, images[:0], labels[:0], generator=[])
    assert result.code.shape == (0,)
    assert result.flags == Flags()
