"""Searches that end at the first success, against ones that go on and look back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lit_robust.attacks import PGD

SETTINGS: dict[str, Any] = {"eps": 0.4, "step_size": 0.05, "steps": 8}


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


@pytest.fixture
def answers(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(images).argmax(1)
    return found


@pytest.mark.parametrize("start", ["none", "sphere"])
def test_first_is_the_first_broken_iterate_of_the_whole_search(
    network: nn.Module, images: Tensor, answers: Tensor, start: str
) -> None:
    first = PGD(keep="first", start=start, **SETTINGS)(network, images, answers, generator=generators(8))  # type: ignore[arg-type]
    # Brute force: the iterate after n steps is where a search of n steps ends.
    ends = [
        PGD(start=start, **{**SETTINGS, "steps": steps})(network, images, answers, generator=generators(8))  # type: ignore[arg-type]
        for steps in range(SETTINGS["steps"] + 1)
    ]
    broken = torch.stack([end.success for end in ends])
    assert 0 < broken[-1].sum() < 8, "some images have to break and some to withstand"
    when = torch.where(broken.any(0), broken.int().argmax(0), SETTINGS["steps"])
    assert torch.equal(first.success, broken.any(0))
    expected = torch.stack([end.images for end in ends])[when, torch.arange(8)]
    # Batches that shrink round otherwise, and eight steps carry that on.
    torch.testing.assert_close(first.images, expected, rtol=0, atol=1e-5)
    # The gradient at the broken iterate was computed by the pass that gave its answer.
    assert first.steps.tolist() == torch.where(broken.any(0), (when + 1).clamp_max(8), 8).tolist()


def test_work_shrinks_as_images_break(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    sizes: list[tuple[bool, int]] = []
    network.register_forward_hook(lambda _, inputs, __: sizes.append((torch.is_grad_enabled(), len(inputs[0]))))
    result = PGD(keep="first", **SETTINGS)(network, images, answers)
    assert sum(size for graded, size in sizes if graded) == int(result.steps.sum())
    assert min(size for graded, size in sizes if graded) < 8


def test_a_mistake_at_the_start_ends_the_search_there(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    wrong = (answers + 1) % 10
    result = PGD(keep="first", **SETTINGS)(network, images, wrong)
    assert torch.equal(result.images, images)
    assert result.success.all()
    assert result.steps.tolist() == [1] * 8


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_targeted_search_ends_at_the_target_and_not_at_any_mistake(
    network: nn.Module, images: Tensor, answers: Tensor, loss: Any
) -> None:
    targets = (answers + 3) % 10
    attack = PGD(eps=3.0, step_size=0.3, steps=20, keep="first", loss=loss)
    found = attack.towards(network, images, answers, targets)
    with torch.no_grad():
        says = network(found.images).argmax(1)
    assert (says == targets).sum() >= 6, "a radius of 3 is far more than most of these images need"
    assert torch.equal(found.success, says != answers)


def test_least_likely_is_the_lowest_logit_of_another_class(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        logits = network(images)
    lowest, second = logits.sort(1).indices[:, :2].unbind(1)
    labels = torch.where(torch.arange(8) < 4, lowest, logits.argmax(1))
    targets = torch.where(torch.arange(8) < 4, second, lowest)
    attack = PGD(target="least_likely", eps=1.0, step_size=0.25, steps=4)
    expected = attack.towards(network, images, labels, targets)
    assert torch.equal(attack(network, images, labels).images, expected.images)


def test_towards_a_target_is_torchattacks_least_likely_pgd(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    peer = torchattacks.PGDL2(network, eps=0.8, alpha=0.2, steps=6, random_start=False)
    peer.set_mode_targeted_least_likely(quiet=True)
    ours = PGD(target="least_likely", eps=0.8, step_size=0.2, steps=6).perturb(network, images, answers)
    # The tolerance of the other comparisons with peers: 1/40 of a grey level.
    torch.testing.assert_close(ours, peer(images, answers), rtol=0, atol=1e-4)


def test_one_step_is_torchattacks_fgsm(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    ours = PGD(norm="linf", eps=0.03, step_size=0.03, steps=1).perturb(network, images, answers)
    torch.testing.assert_close(ours, torchattacks.FGSM(network, eps=0.03)(images, answers), rtol=0, atol=1e-6)


def test_a_false_alarm_in_half_precision_is_no_success(
    make_network: Callable[[], nn.Module], images: Tensor, answers: Tensor
) -> None:
    network = make_network().eval()

    class Liar(nn.Module):
        """Says something else in passes with gradients, as a coarse precision may."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = network(images)
            return logits.roll(1, 1) if torch.is_grad_enabled() else logits

    result = PGD(keep="first", eps=0.01, step_size=1e-3, steps=3)(Liar(), images, answers)
    assert not result.success.any()
    assert result.steps.tolist() == [3] * 8
