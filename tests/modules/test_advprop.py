"""AdvProp's two branches: what goes through which, in training, attack, test and checkpoint."""

import copy

import pytest
import torch
from test_modules import ATTACK, NETWORK, SETTINGS, Loader, fit
from torch import nn
from torch.nn import functional as F

from lit_robust.models import Network, build_classifier, weights_digest
from lit_robust.models.auxiliary_norm import AuxiliaryNorm, add_auxiliary_norms, auxiliary_branch, without_auxiliary
from lit_robust.models.weights import read_state_dict
from lit_robust.modules import AdvPropModule, StandardModule


@pytest.mark.parametrize(
    "name", ["lit_robust/resnet_tiny", "torchvision/googlenet", "timm/resnet26", "torchvision/alexnet"]
)
def test_a_converted_network_gives_the_plain_ones_answers_and_has_its_names(name):
    torch.manual_seed(0)
    plain = build_classifier(Network(name, num_classes=5)).eval()
    converted = copy.deepcopy(plain)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert add_auxiliary_norms(converted) == norms
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(converted(images), plain(images))
    assert without_auxiliary(converted.state_dict()).keys() == plain.state_dict().keys()
    assert weights_digest(converted) == weights_digest(plain)
    plain.load_state_dict(without_auxiliary(converted.state_dict()), strict=True)
    again = copy.deepcopy(converted)
    again.load_state_dict(converted.state_dict(), strict=True)


def test_branches_have_statistics_and_parameters_of_their_own_whatever_the_mode():
    norm = AuxiliaryNorm(nn.BatchNorm2d(3))
    inputs = torch.randn(8, 3, 4, 4) + 2
    with auxiliary_branch(norm):
        norm.train()(inputs)
        with torch.no_grad():
            norm.auxiliary.weight.fill_(3)
        through_auxiliary = norm.eval()(inputs)
    assert torch.equal(norm.main.running_mean, torch.zeros(3))
    torch.testing.assert_close(norm.auxiliary.running_mean, 0.1 * inputs.mean((0, 2, 3)))
    expected = (inputs - norm.auxiliary.running_mean.view(1, 3, 1, 1)) / (
        norm.auxiliary.running_var.view(1, 3, 1, 1) + 1e-5
    ).sqrt()
    torch.testing.assert_close(through_auxiliary, 3 * expected)
    torch.testing.assert_close(norm.eval()(inputs), inputs / (1 + 1e-5) ** 0.5)


def test_the_branch_is_put_back_after_an_error():
    norm = AuxiliaryNorm(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="expected 4D"), auxiliary_branch(norm):
        norm(torch.zeros(3))
    assert not norm.uses_auxiliary


def apart(module):
    """Give the auxiliary norms parameters and statistics that are far from the main ones'."""
    generator = torch.Generator().manual_seed(7)
    for norm in module.modules():
        if isinstance(norm, AuxiliaryNorm):
            for tensor in (norm.auxiliary.weight, norm.auxiliary.running_mean, norm.auxiliary.running_var):
                tensor.data += torch.rand(tensor.shape, generator=generator)


def by_hand(module):
    """Take one step with two networks that share all but their batch norms, written out."""
    main = build_classifier(NETWORK).train()
    state = module.model.state_dict()
    main.load_state_dict(without_auxiliary(state))
    twin = copy.deepcopy(main)
    auxiliary = {name.replace("auxiliary.", ""): value for name, value in state.items() if "auxiliary." in name}
    twin.load_state_dict(without_auxiliary(state) | auxiliary)
    shared = dict(main.named_parameters())
    norms = {f"{name}." for name, child in main.named_modules() if isinstance(child, nn.BatchNorm2d)}
    batch = next(iter(Loader()))
    twin.eval()
    adversarial = ATTACK.perturb(twin, batch.image, batch.label)
    twin.train()
    (F.cross_entropy(main(batch.image), batch.label, label_smoothing=0.1) / 2).backward()
    (F.cross_entropy(twin(adversarial), batch.label, label_smoothing=0.1) / 2).backward()
    for name, parameter in twin.named_parameters():
        if not any(name.startswith(norm) for norm in norms):
            shared[name].grad += parameter.grad
    torch.optim.SGD(main.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3).step()
    torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3).step()
    return main.state_dict(), {
        name: value for name, value in twin.state_dict().items() if name.startswith(tuple(norms))
    }


def test_a_step_is_that_of_two_networks_that_share_all_but_their_norms(tmp_path):
    torch.manual_seed(2)
    module = AdvPropModule(NETWORK, SETTINGS, ATTACK)
    # Through norms of their own the attack finds other images, so the branch it takes shows in the weights.
    apart(module)
    main, auxiliary = by_hand(module)
    fit(module, tmp_path, limit_train_batches=1)
    found = module.model.state_dict()
    # The order of floating-point sums differs.
    for name, tensor in main.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
    for name, tensor in auxiliary.items():
        place, _, leaf = name.rpartition(".")
        torch.testing.assert_close(found[f"{place}.auxiliary.{leaf}"], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_a_checkpoint_is_tested_as_a_plain_network_and_resumed_as_advprop(tmp_path):
    module = AdvPropModule(NETWORK, SETTINGS, ATTACK)
    trainer = fit(module, tmp_path, enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    images = torch.rand(2, 3, 32, 32)
    plain = build_classifier(NETWORK).eval()
    plain.network.load_state_dict(read_state_dict(tmp_path / "last.ckpt"), strict=True)
    module.eval()
    with torch.no_grad():
        assert torch.equal(plain(images), module(images))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    standard = StandardModule(NETWORK, SETTINGS)
    standard.on_load_checkpoint(checkpoint)
    standard.load_state_dict(checkpoint["state_dict"], strict=True)
    again = AdvPropModule(NETWORK, SETTINGS, ATTACK)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_synchronised_batch_norm_converts_both_branches():
    module = AdvPropModule(NETWORK, SETTINGS, ATTACK)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module.model)
    norms = [norm for norm in converted.modules() if isinstance(norm, AuxiliaryNorm)]
    assert norms
    assert all(isinstance(branch, nn.SyncBatchNorm) for norm in norms for branch in (norm.main, norm.auxiliary))
