"""Batch norms folded for a search: the same gradients, the network's own verdicts, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import densenet121, googlenet, mobilenet_v3_small, resnet18

from lit_robust.attacks import PGD
from lit_robust.attacks.attack import frozen
from lit_robust.core.folding import folded
from lit_robust.models import Network, build_classifier

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])


def shaken(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights of its own, as training does."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
            if module.affine:
                module.weight.data.copy_(0.5 + torch.rand(shape, generator=generator))
                module.bias.data.copy_(0.3 * torch.randn(shape, generator=generator))
    return model


def answer_and_gradient(model, images):
    images = images.clone().requires_grad_(True)
    logits = model(images)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), images)[0]


def norms_called(model, images=IMAGES):
    """Return how many batch norms a pass with gradients calls."""
    called = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), named=None):
            called.append(function is torch.nn.functional.batch_norm)
            return function(*arguments, **(named or {}))

    with Seen():
        model(images)
    return sum(called)


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: build_classifier(Network("lit_robust/resnet_tiny", 10)), 0),
        (lambda: build_classifier(Network("torchvision/resnet18", 10)), 0),
        (lambda: mobilenet_v3_small(num_classes=10), 0),
        # Half of a dense network's norms come before their convolutions, and the last before the pool.
        (lambda: densenet121(num_classes=10), 62),
        (lambda: googlenet(num_classes=10, init_weights=False), 0),
    ],
    ids=["resnet_tiny", "resnet18", "mobilenet", "densenet", "googlenet"],
)
def test_a_folded_network_has_the_same_gradients(build, left):
    torch.manual_seed(0)
    model = shaken(build()).eval()
    precise = copy.deepcopy(model).double()
    with frozen(model), frozen(precise):
        expected = answer_and_gradient(precise, IMAGES.double())
        own = answer_and_gradient(model, IMAGES)
        with folded(model):
            assert norms_called(model) == left
            found = answer_and_gradient(model, IMAGES)
            with torch.no_grad():
                assert torch.equal(model(IMAGES), own[0])
        assert norms_called(model) > left
    # No further from float64 than the network itself is, but for a factor of rounding.
    for mine, plain, true in zip(found, own, expected, strict=True):
        size = true.abs().max()
        assert (mine - true).abs().max() / size < 10 * max(float((plain - true).abs().max() / size), 1e-6)


class Counting(nn.Module):
    """A user's own network around a library's: its forward is never traced."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, images):
        self.calls += 1
        return self.network(x=images)


def test_a_forward_of_the_users_own_is_run_and_its_parts_are_folded():
    model = Counting(shaken(resnet18(num_classes=10))).eval()
    PGD(norm="linf", eps=0.1, steps=4)(model, IMAGES, LABELS)
    assert model.calls == 5  # Four gradients and the verdict.
    with frozen(model), folded(model):
        assert norms_called(model) == 0
    with frozen(model), folded(model.network.layer1):
        assert norms_called(model) == 20 - 4


def test_nothing_is_left_behind_even_after_an_error():
    model = shaken(build_classifier(Network("lit_robust/resnet_tiny", 10)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = list(model.modules())
    with pytest.raises(ValueError, match="on the way"), frozen(model), folded(model):
        raise ValueError("on the way")
    assert all("forward" not in vars(part) for part in model.modules())
    assert all(one is other for one, other in zip(model.modules(), parts, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_weights_and_the_layers_of_the_moment_count():
    model = shaken(resnet18(num_classes=10)).eval()

    def difference():
        with frozen(model):
            own = answer_and_gradient(model, IMAGES)[0]
            with folded(model):
                assert norms_called(model) == 0
                return float((answer_and_gradient(model, IMAGES)[0] - own).abs().max() / own.abs().max())

    assert difference() < 1e-5
    model.bn1.running_mean.add_(1.0)
    model.conv1.weight.data.mul_(2.0)
    assert difference() < 1e-5
    model.layer1[0].bn1 = nn.BatchNorm2d(64).eval()
    model.fc = nn.Linear(512, 4)
    assert difference() < 1e-5


def test_a_pass_that_a_hook_looks_at_is_the_networks_own():
    """As where a memory asks for a layer within its forward, when the network around it is folded."""
    model = shaken(resnet18(num_classes=10)).eval()
    for layer in (model.layer2, model.layer2[0].bn1, model.layer2[0].conv1):
        seen = []
        with frozen(model), folded(model):
            handle = layer.register_forward_hook(lambda module, given, output, seen=seen: seen.append(len(output)))
            assert norms_called(model) == 20
            handle.remove()
            assert norms_called(model) == 0
        assert seen == [3]


@pytest.mark.parametrize(("name", "calls"), [("avgpool", 1), ("fc", 1), ("layer2.0.relu", 2)])
def test_a_layer_that_a_folded_pass_calls_itself_may_be_looked_at(name, calls):
    model = shaken(resnet18(num_classes=10)).eval()
    seen = []
    with frozen(model), folded(model):
        handle = model.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(output))
        assert norms_called(model) == 0
        folded_seen = list(seen)
        handle.remove()
    seen.clear()
    with frozen(model):
        handle = model.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(output))
        model(IMAGES)
        handle.remove()
    assert len(folded_seen) == len(seen) == calls
    for mine, own in zip(folded_seen, seen, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("layer2", 1),  # The stem's, which no part but the whole has.
        ("layer2.0.bn1", 3),  # And those of its block, but for the shortcut's.
    ],
)
def test_what_was_hooked_before_is_left_out(name, left):
    model = shaken(resnet18(num_classes=10)).eval()
    seen = []
    model.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(len(output)))
    with frozen(model), folded(model):
        assert norms_called(model) == left
    assert seen == [3]


def test_a_batch_norm_of_the_batch_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
    with frozen(model), folded(model):
        assert norms_called(model) == 1


def test_a_compiled_network_is_left_alone():
    model = torch.compile(shaken(build_classifier(Network("lit_robust/resnet_tiny", 10))).eval(), backend="eager")
    with frozen(model), folded(model):
        assert norms_called(model) == 12


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_an_attack_finds_the_same(bf16, monkeypatch):
    model = shaken(build_classifier(Network("lit_robust/resnet_tiny", 10)))
    attack = PGD(norm="l2", eps=0.05, steps=3)
    labels = answer_and_gradient(model.eval(), IMAGES)[0].argmax(1)
    found = []
    for folds in (True, False):
        if not folds:
            monkeypatch.setattr("lit_robust.core.folding.NORMS", ())
            monkeypatch.setattr("lit_robust.core.stem.FEW", 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(attack(model, IMAGES, labels))
    assert torch.equal(found[0].success, found[1].success)
    # bf16 has three digits, and whichever way a gradient is rounded it is not the other's.
    within = 0.02 if bf16 else 1e-4
    torch.testing.assert_close(found[0].loss, found[1].loss, rtol=within, atol=within)
