"""AutoAttack: who broke what, its flags, and its verdicts against torchattacks."""

import json

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lit_robust.attacks.autoattack import AutoAttack
from lit_robust.attacks.flags import Flags
from lit_robust.errors import UserError

NAMES = ("clean", "apgd-ce", "apgd-t", "fab-t", "square")


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_it_breaks_what_torchattacks_breaks(network: nn.Module) -> None:
    images = torch.rand(12, 3, 10, 10, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    # Nearly all that can be broken leaves at once, so that few images take all the thousands of passes.
    result = AutoAttack("linf", 0.03)(network, images, labels, generator=generators(12))
    theirs = torchattacks.AutoAttack(network, "Linf", 0.03, n_classes=10)(images, labels)
    with torch.no_grad():
        broken = network(theirs).argmax(1) != labels
    # An image at the edge of eps may go either way: 1 of 12.
    assert (broken != result.success).sum() <= 1
    assert 6 < int(broken.sum()) < 12
    assert result.names == NAMES
    assert result.code[0] == 0
    assert torch.equal(result.images[0], images[0])
    assert torch.equal(result.code >= 0, result.success)
    # Cross-entropy breaks nearly all that can be broken; what nothing breaks has gone through everything.
    assert int((result.code == 1).sum()) >= 3
    stood = ~result.success
    assert (result.queries[stood] == 5001).all()
    assert (result.queries[~stood & (result.code != 4)] == 0).all()
    assert (result.steps[stood] == 100 + 900 + 900).all()
    with torch.no_grad():
        assert torch.equal(network(result.images).argmax(1) != labels, result.success)
    assert result.flags == Flags(images=12, gained_by_square=int((result.code == 4).sum()))
    assert result.flags.sentences() == []


def test_rand_breaks_what_torchattacks_breaks(network: nn.Module) -> None:
    images = torch.rand(12, 3, 10, 10, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        labels = network(images).argmax(1)
    result = AutoAttack("l2", 0.3, "rand")(network, images, labels, generator=generators(12))
    theirs = torchattacks.AutoAttack(network, "L2", 0.3, "rand", n_classes=10)(images, labels)
    with torch.no_grad():
        broken = network(theirs).argmax(1) != labels
    assert (broken != result.success).sum() <= 1
    assert 2 < int(broken.sum()) < 12
    assert (result.steps[~result.success] == 2 * 100 * 20).all()


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
    assert flags.zero_gradient == int((result.code != 1).sum() - (result.code == 0).sum())
    sentences = " ".join(flags.sentences())
    assert f"Square broke {square} of 8 images that withstood all gradients" in sentences
    assert f"zero at the start of a search for {flags.zero_gradient} of 8" in sentences
    assert flags.randomised == flags.probabilities == 0


def test_random_answers_and_probabilities_are_found_out(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    noise = torch.Generator().manual_seed(0)

    def shaken(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        # Ten times what two passes may differ by.
        return logits * (1 + 1e-3 * torch.randn(logits.shape, generator=noise))

    attack = AutoAttack("l2", 20.0)
    flags = attack(shaken, images, labels, generator=generators(8)).flags
    assert flags.randomised == 8
    assert "version rand" in flags.sentences()[0]
    flags = attack(lambda images: network(images).softmax(1), images, labels, generator=generators(8)).flags
    assert flags.probabilities == 8
    assert "before the softmax" in " ".join(flags.sentences())
    # One image that is no distribution clears the network.
    assert Flags(images=8, probabilities=7).sentences() == []
    rand = AutoAttack("l2", 20.0, "rand")(shaken, images, labels, generator=generators(8))
    assert rand.flags.randomised == 0
    assert rand.names == ("clean", "apgd-ce", "apgd-dlr")
    assert (rand.code == 1).all()


def test_flags_of_batches_add_up() -> None:
    total = sum([Flags(600, 1, 2, 3, 1), Flags(400, 10, 20, 30, 1)], Flags())
    assert total == Flags(1000, 11, 22, 33, 2)
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
