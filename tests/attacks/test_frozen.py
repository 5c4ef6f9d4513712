import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.levit import Attention
from torch import Tensor, nn

from lit_robust.attacks import PGD, frozen


@dataclass
class Snapshot:
    """All that an attack must leave as it was."""

    modes: list[bool]
    requires_grad: list[bool]
    gradients: list[Tensor | None]
    state: dict[str, Tensor]
    random: Tensor

    @classmethod
    def of(cls, network: nn.Module) -> "Snapshot":
        return cls(
            modes=[module.training for module in network.modules()],
            requires_grad=[parameter.requires_grad for parameter in network.parameters()],
            gradients=[copy.deepcopy(parameter.grad) for parameter in network.parameters()],
            state=copy.deepcopy(network.state_dict()),
            random=torch.get_rng_state(),
        )

    def check(self, network: nn.Module) -> None:
        now = Snapshot.of(network)
        assert now.modes == self.modes
        assert now.requires_grad == self.requires_grad
        assert torch.equal(now.random, self.random)
        for name, tensor in self.state.items():
            assert torch.equal(now.state[name], tensor), name
        for before, after in zip(self.gradients, now.gradients, strict=True):
            assert (before is None) == (after is None)
            if before is not None and after is not None:
                assert torch.equal(before, after)


class Broken(nn.Module):
    """Fails at a given call, as a network that runs out of memory does."""

    def __init__(self, network: nn.Module, calls: int) -> None:
        super().__init__()
        self.network, self.calls = network, calls

    def forward(self, images: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("broken on purpose")
        logits: Tensor = self.network(images)
        return logits


ATTACK = PGD(eps=1e-3, step_size=5e-4, steps=2, start="ball", keep="best", restarts=2)


@given(data=st.data(), calls=st.integers(0, 12))
# The fixture is a pure builder, so sharing it between examples shares nothing else.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_attack_leaves_no_trace_even_when_the_network_fails(
    make_network: Callable[[], nn.Module], data: Any, calls: int
) -> None:
    network = Broken(make_network(), calls)
    for module in network.modules():
        module.training = data.draw(st.booleans())
    for parameter in network.parameters():
        if data.draw(st.booleans()):
            parameter.grad = torch.full_like(parameter, 0.5)
        parameter.requires_grad_(data.draw(st.booleans()))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        labels = make_network().eval()(images).argmax(1)
    before = Snapshot.of(network)
    # Too weak to break an image: two searches of two steps and a best point, and a score of each, are eight calls.
    if calls < 8:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            ATTACK(network, images, labels, generator=generator)
    else:
        ATTACK(network, images, labels, generator=generator)
        assert network.calls == calls - 8
    before.check(network)


def test_inside_everything_is_in_eval_mode_and_nothing_requires_gradients(
    make_network: Callable[[], nn.Module],
) -> None:
    network = make_network()
    with frozen(network):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_train_method_of_its_own_neither_runs_nor_spoils_the_way_back() -> None:
    class Stubborn(nn.Linear):
        def train(self, mode: bool = True) -> "Stubborn":
            raise AssertionError("train() was called")

    network = nn.Sequential(Stubborn(2, 2), nn.Dropout())
    with frozen(network):
        assert not network[0].training
    assert network[0].training
    assert network[1].training


def test_a_plain_function_has_nothing_to_freeze() -> None:
    with frozen(lambda images: images):
        pass


def test_what_networks_keep_in_eval_mode_is_of_their_weights_now() -> None:
    """timm's LeViT keeps its attention biases there, and drops them in ``train()``, which is not called here."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(dim=8, key_dim=4, num_heads=2, resolution=(4, 4))
            self.attention.proj.ln.bn.reset_parameters()
            nn.init.ones_(self.attention.proj.ln.bn.weight)

        def forward(self, images: Tensor) -> Tensor:
            return self.attention(images.flatten(2).mT.repeat(1, 1, 3)[:, :, :8]).mean(1)

    torch.manual_seed(0)
    network, images = Attending().train(), torch.rand(2, 3, 4, 4)
    with frozen(network):
        before = network(images)
    with torch.no_grad():
        network.attention.attention_biases.copy_(torch.randn(network.attention.attention_biases.shape))
    with frozen(network):
        after = network(images)
    fresh = Attending()
    fresh.load_state_dict(network.state_dict())
    fresh.eval()
    assert torch.equal(after, fresh(images))
    assert not torch.equal(before, after)
