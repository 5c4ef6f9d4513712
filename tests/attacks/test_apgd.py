"""Auto-PGD where success is known exactly, and against torchattacks."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lit_robust.attacks.apgd import APGD, APGDLoss, SearchState, checkpoint_windows, move
from lit_robust.attacks.ascent import Ball
from lit_robust.attacks.norms import L2, Linf
from lit_robust.core.errors import UserError

NormName = Literal["l2", "linf"]
NORMS: list[NormName] = ["l2", "linf"]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_breaks_exactly_where_the_boundary_is_within_eps(norm: NormName, loss: APGDLoss) -> None:
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(27, generator=generator)
    images = 0.35 + 0.3 * torch.rand(200, 3, 3, 3, generator=generator)
    height = images.flatten(1) @ slope
    bias = height.mean()

    def network(images: Tensor) -> Tensor:
        height = images.flatten(1) @ slope - bias
        return torch.stack([height, -height], 1)

    labels = network(images).argmax(1)
    exact = (height - bias).abs().double() / (slope.norm() if norm == "l2" else slope.abs().sum()).double()
    eps = float(exact.median())
    # No ball reaches a wall, so the distance to the plane is that in the whole space.
    assert eps < 0.35
    result = APGD(norm=norm, eps=eps, loss=loss)(network, images, labels, generator=generator)
    # In L2 a step's direction and the ball's wall round at 1e-7; the search converges to the plane's normal.
    clear = ((exact / eps - 1).abs() > 1e-4).nonzero()[:, 0]
    assert len(clear) >= 198
    assert torch.equal(result.success[clear], exact[clear] < eps)


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_result_is_what_its_fields_say(
    network: nn.Module, images: Tensor, labels: Tensor, norm: NormName, targets: int
) -> None:
    eps = {"l2": 0.15, "linf": 0.01}[norm]
    labels[0] = (labels[0] + 1) % 10
    attack = APGD(norm=norm, eps=eps, steps=10, loss="dlr", targets=targets)
    result = attack(network, images, labels, generator=generators(8))
    offset = (result.images - images).flatten(1).double()
    length = offset.norm(dim=1) if norm == "l2" else offset.abs().amax(1)
    # Adding the offset to a pixel near 1 rounds to 6e-8.
    assert length.max() <= eps * (1 + 1e-6) + 6e-8
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    with torch.no_grad():
        logits = network(result.images)
    assert torch.equal(result.success, logits.argmax(1) != labels)
    assert 2 <= int(result.success.sum()) <= 7
    assert result.steps[0] == 0
    assert torch.equal(result.images[0], images[0])
    assert (result.steps[~result.success] == 10 * max(targets, 1)).all()
    # The point of highest loss is kept, so no more steps lead to a lower one.
    longer = replace(attack, steps=20)(network, images, labels, generator=generators(8))
    both = ~longer.success
    assert (longer.loss[both] >= result.loss[both] - 0.05).all()


def test_one_gradient_a_step_is_computed(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    calls: list[bool] = []
    network.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[0].requires_grad))
    result = APGD(eps=0.0001, steps=7)(network, images, labels, generator=generators(8))
    assert not result.success.any()
    # The clean images, a step each, and the verdicts on the last and the best points.
    assert calls == [False] + [True] * 7 + [False] * 2
    assert result.steps.tolist() == [7] * 8


@pytest.mark.parametrize("attack", [APGD(eps=0.01, steps=3), APGD("l2", 0.15, 4, "dlr", targets=3, restarts=2)])
def test_an_image_s_result_depends_neither_on_its_batch_nor_on_who_survives(
    network: nn.Module, images: Tensor, labels: Tensor, attack: APGD
) -> None:
    # An image that is not attacked must not hand its random numbers to the next.
    labels[0] = (labels[0] + 1) % 10
    together = attack(network, images, labels, generator=generators(8))
    assert 1 < int(together.success.sum()) < 8
    for index, source in enumerate(generators(8)):
        alone = attack(network, images[index, None], labels[index, None], generator=[source])
        # Another batch size picks other convolution kernels, whose sums round differently, and signs amplify that.
        assert alone.success[0] == together.success[index]
        assert alone.steps[0] == together.steps[index]
        torch.testing.assert_close(alone.loss[0], together.loss[index], rtol=1e-3, atol=1e-3)


def test_the_network_and_the_global_state_are_left_as_found(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network.train()
    network[0].eval()
    network[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    with torch.inference_mode():
        attack = APGD(steps=3, targets=2, loss="margin")
        result = attack(network, images.clone(), labels.clone(), generator=generators(8))
    assert not result.images.is_inference()
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [parameter.requires_grad for parameter in network.parameters()][:2] == [False, True]
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_format_changes_nothing(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = APGD("l2", 0.15, 12)
    plain = attack(network, images, labels, generator=generators(8))
    network.to(memory_format=torch.channels_last)
    last = attack(network, images.contiguous(memory_format=torch.channels_last), labels, generator=generators(8))
    assert torch.equal(last.success, plain.success)
    torch.testing.assert_close(last.loss, plain.loss, rtol=1e-3, atol=1e-3)


def test_draws_average_the_noise_of_a_random_network_away() -> None:
    noise = torch.Generator().manual_seed(3)
    slope = torch.randn(1, 3, 8, 8, generator=noise)

    def network(images: Tensor) -> Tensor:
        # A gradient that is mostly noise of the network's own.
        shaken = slope + 6 * torch.randn(slope.shape, generator=noise)
        height = ((images - 0.5) * shaken).sum((1, 2, 3))
        return torch.stack([1 - height, height], 1)

    images = torch.full((20, 3, 8, 8), 0.5)
    labels = torch.zeros(20, dtype=torch.int64)
    found = []
    for draws in (1, 20):
        # Within eps 0.003 the noise-free logit moves by 0.46 at most, so the label stays in the lead.
        attack = APGD(eps=0.003, steps=5, draws=draws, loss="margin")
        result = attack(network, images, labels, generator=generators(20))
        assert result.steps.max() == 5 * draws
        found.append(((result.images - 0.5) * slope).sum((1, 2, 3)).mean().item())
    best = 0.003 * slope.abs().sum().item()
    assert found[0] < 0.5 * best < found[1]


def test_zero_gradients_are_found_out(images: Tensor) -> None:
    def quantised(images: Tensor) -> Tensor:
        flat = images.mean((1, 2, 3))
        return torch.stack([flat.round(), 0 * flat + 0.2, 0 * flat + 0.1, 0 * flat], 1)

    labels = torch.ones(8, dtype=torch.int64) - (images.mean((1, 2, 3)).round() > 0.5).long()
    with APGD(eps=0.001, steps=2, loss="dlr")._opened(
        quantised, images, labels, lambda logits, _: logits[:, 0], generators(8)
    ) as record:
        APGD(eps=0.001, steps=2).explore(record, generators(8))
        assert record.vanished.tolist() == [2] * 8
        APGD(eps=0.001, steps=2, loss="dlr").explore(record, generators(8))
        assert torch.equal(record.vanished, record.steps)


@pytest.mark.parametrize(("loss", "peer_loss"), [("cross_entropy", "ce"), ("dlr", "dlr"), ("targets", "")])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.0105), ("l2", 0.15)])
def test_it_breaks_what_torchattacks_breaks(
    network: nn.Module, norm: NormName, eps: float, loss: str, peer_loss: str
) -> None:
    images = torch.rand(48, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        labels = network(images).argmax(1)
    name = {"l2": "L2", "linf": "Linf"}[norm]
    if loss == "targets":
        ours = APGD(norm, eps, 50, "dlr", targets=3)
        peer = torchattacks.APGDT(network, name, eps, steps=50, n_restarts=1, n_classes=4)
    else:
        ours = APGD(norm, eps, 50, loss)  # type: ignore[arg-type]
        peer = torchattacks.APGD(network, name, eps, steps=50, n_restarts=1, loss=peer_loss)
    result = ours(network, images, labels, generator=torch.Generator().manual_seed(0))
    theirs = peer(images, labels)
    with torch.no_grad():
        broken = network(theirs).argmax(1) != labels
    # Random starts differ, so an image at the edge of eps may go either way: 1 of 48.
    assert (broken != result.success).sum() <= 1
    assert 15 < int(broken.sum()) < 35


def test_wrong_settings_are_refused_in_a_sentence(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match="APGD eps is 8 in linf, .* did you mean 8/255"):
        APGD(eps=8)
    with pytest.raises(UserError, match="APGD loss is 'kl': choose one of cross_entropy, margin, dlr"):
        APGD(loss="kl")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="APGD steps is 0: give 1 or more"):
        APGD(steps=0)
    with pytest.raises(UserError, match="APGD rho is 1.5: give a share"):
        APGD(rho=1.5)
    with pytest.raises(UserError, match="APGD momentum is 0: give a share"):
        APGD(momentum=0)
    with pytest.raises(UserError, match="APGD needs random numbers: pass a torch.Generator"):
        APGD()(network, images, labels)
    with pytest.raises(UserError, match="3 generators for 8 images"):
        APGD()(network, images, labels, generator=generators(3))
    with pytest.raises(UserError, match="L2 eps 128 is beyond 5.2"):
        APGD("l2", 128)(network, images, labels, generator=generators(8))
    with pytest.raises(UserError, match="carry no gradient"):
        APGD(steps=1)(lambda images: network(images.detach()), images, labels, generator=generators(8))
    with pytest.raises(UserError, match="not a number"):
        APGD(steps=1)(lambda images: network(images) * torch.nan, images, labels, generator=generators(8))


def test_an_empty_batch_and_an_eps_of_0_are_no_trouble(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    assert len(APGD(targets=2, loss="dlr")(network, images[:0], labels[:0], generator=[]).images) == 0
    result = APGD("l2", 0.0, 3)(network, images, labels, generator=generators(8))
    assert torch.equal(result.images, images)
    assert not result.success.any()


def test_checkpoints_are_the_paper_s() -> None:
    # Section 3.1: p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), in whole percent.
    places = [0, 22]
    while places[-1] + max(places[-1] - places[-2] - 3, 6) <= 100:
        places.append(places[-1] + max(places[-1] - places[-2] - 3, 6))
    windows = checkpoint_windows(100)
    assert list(windows) == places[1:]
    assert list(windows.values()) == [later - earlier for earlier, later in pairwise(places)]


def test_few_steps_are_each_a_checkpoint() -> None:
    assert checkpoint_windows(4) == {1: 1, 2: 1, 3: 1, 4: 1}


def test_a_move_is_the_formula_worked_out() -> None:
    clean = torch.full((1, 1, 1, 2), 0.5)
    images, before = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([[[[0.5, 0.52]]]])
    gradient, step = torch.tensor([[[[3.0, -4.0]]]]), torch.full((1, 1, 1, 1), 0.1)
    # Linf: the sign step leads to (0.7, 0.4), cut to 0.15 around 0.5: (0.65, 0.4). Momentum: 0.6 + 0.75 * 0.05 +
    # 0.25 * 0.1 = 0.6625, cut to 0.65; 0.5 - 0.75 * 0.1 - 0.25 * 0.02 = 0.42.
    moved = move(images, before, gradient, Ball(clean, Linf(), 0.15), step, 0.75)
    torch.testing.assert_close(moved, torch.tensor([[[[0.65, 0.42]]]]))
    # L2, far from the ball's wall: the step is (0.06, -0.08).
    moved = move(images, before, gradient, Ball(clean, L2(), 1.0), step, 0.75)
    torch.testing.assert_close(moved, torch.tensor([[[[0.6 + 0.045 + 0.025, 0.5 - 0.06 - 0.005]]]]))


def test_a_gradient_too_small_to_square_keeps_its_direction() -> None:
    clean = torch.full((2, 1, 1, 2), 0.5)
    gradient = torch.tensor([[[[3e-30, -4e-30]]], [[[0.0, 0.0]]]])
    moved = move(clean, clean, gradient, Ball(clean, L2(), 1.0), torch.full((2, 1, 1, 1), 0.1), 1.0)
    torch.testing.assert_close(moved - clean, torch.tensor([[[[0.06, -0.08]]], [[[0.0, 0.0]]]]))


def observed(losses: list[list[float]]) -> SearchState:
    """A search of as many images as rows, with these losses in turn; an image's pixel is its step's number."""
    columns = [torch.tensor(column) for column in zip(*losses, strict=True)]

    def pixels(number: int) -> Tensor:
        return torch.full((len(losses), 1, 1, 1), float(number))

    state = SearchState.begin(pixels(0), columns[0], pixels(0), step_size=1.0)
    for number, column in enumerate(columns[1:], 1):
        state = state.seen(pixels(number), column, pixels(number))
    return state


def test_the_step_halves_where_too_few_steps_rise_and_goes_on_from_the_best_point() -> None:
    # Of four steps three rise; of four steps four rise. 3 <= 0.75 * 4.
    state = observed([[0.0, 3.0, 1.0, 2.0, 2.5], [0.0, 1.0, 2.0, 3.0, 4.0]]).checked(4, 0.75)
    assert state.step_size.flatten().tolist() == [0.5, 1.0]
    assert state.images.flatten().tolist() == [1.0, 4.0]
    assert state.gradient.flatten().tolist() == [1.0, 4.0]
    assert state.before.flatten().tolist() == [3.0, 3.0]
    assert state.rises.tolist() == [0, 0]


def test_the_step_halves_where_the_best_loss_stands_still_since_a_checkpoint_that_did_not_halve() -> None:
    state = observed([[0.0, 1.0, 2.0], [5.0, 1.0, 2.0]]).checked(2, 0.75)
    assert state.halved.tolist() == [False, True]
    # All rise, but from far below, so no best loss improves; the second image's step halved just now.
    for number, loss in enumerate([0.5, 1.0], 3):
        there = torch.full((2, 1, 1, 1), float(number))
        state = state.seen(there, torch.tensor([loss, loss + 2]), there)
    assert state.rises.tolist() == [1, 2]
    again = state.seen(state.images, torch.tensor([1.5, 3.5]), state.gradient).checked(2, 0.75)
    assert again.halved.tolist() == [True, False]
    assert again.step_size.flatten().tolist() == [0.5, 0.5]
