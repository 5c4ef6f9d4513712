"""A small network with everything that can go wrong in an attack: batch norm, dropout, pooling."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build_network() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.SiLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    # Statistics of data like the tests', so that features are centred and classes vary.
    sample = torch.rand(64, 3, 12, 12, generator=generator)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean, layer.running_var = sample.mean((0, 2, 3)), sample.var((0, 2, 3))
        with torch.no_grad():
            sample = layer.eval()(sample)
    network.train()
    return network


@pytest.fixture
def make_network() -> Callable[[], nn.Module]:
    """Builds the same network every time, in train mode."""
    return build_network


@pytest.fixture
def network() -> nn.Module:
    return build_network().eval()


@pytest.fixture
def bumpy(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network behind waves of a third of a pixel's range, which long steps overshoot."""
    return lambda images: network(0.5 + 0.5 * torch.sin(20 * images))


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(8, 3, 12, 12, generator=generator)


@pytest.fixture
def labels(network: nn.Module, images: Tensor) -> Tensor:
    """What the network answers on the clean images, so that success is the attack's doing."""
    with torch.no_grad():
        return network(images).argmax(1)


@pytest.fixture(scope="session")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained for a moment, 200 images that it was not trained on and gets right, and their classes."""
    generator = torch.Generator().manual_seed(5)
    patterns = 0.15 * torch.randn(6, 3, 12, 12, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        classes = torch.randint(6, (count,), generator=generator)
        noise = 0.15 * torch.randn(count, 3, 12, 12, generator=generator)
        strength = torch.rand(count, 1, 1, 1, generator=generator)
        return (0.5 + strength * patterns[classes] + noise).clamp(0, 1), classes

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.SiLU()),
            *(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.SiLU()),
            *(nn.Flatten(), nn.Linear(24 * 36, 6)),
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(60):
            images, labels = draw(64)
            optimiser.zero_grad()
            F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    network.eval()
    images, labels = draw(300)
    with torch.no_grad():
        right = network(images).argmax(1) == labels
    assert right.sum() >= 200, "the network has to have learnt something"
    return network, images[right][:200], labels[right][:200]
