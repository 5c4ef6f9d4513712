import copy
import sys
import types

import pytest
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.models import Network, weights_digest
from lit_robust.modules import AdversarialModule, ClassifierModule, Optimisation, StandardModule

NETWORK = Network("lit_robust/resnet_tiny", num_classes=4)
SETTINGS = Optimisation(learning_rate=0.05, schedule="constant", weight_decay=1e-3, label_smoothing=0.1)
ATTACK = PGD(norm="l2", eps=0.5, step_size=0.25, steps=3)


class Loader:
    """Three batches of four images."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(5)
        for number in range(3):
            image = torch.rand(4, 3, 32, 32, generator=generator)
            index = torch.arange(4 * number, 4 * number + 4)
            yield Batch(image, index % 4, index, torch.ones(4, dtype=torch.bool))

    def __len__(self):
        return 3


def fit(module, tmp_path, loader=None, **options):
    settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    trainer = Trainer(**(settings | options))
    trainer.fit(module, loader or Loader())
    return trainer


def by_hand(network, attack=None):
    """Take one step as the papers write it: a plain loop, nothing of Lightning's or ours."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    batch = next(iter(Loader()))
    images = batch.image
    if attack is not None:
        network.eval()
        adversarial = images.clone()
        for _ in range(attack.steps):
            adversarial.requires_grad_(True)
            loss = F.cross_entropy(network(adversarial), batch.label, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
            gradient = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            offset = adversarial.detach() + attack.step_size * gradient - images
            length = offset.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            adversarial = (images + offset * (attack.eps / length).clamp(max=1)).clamp(0, 1)
        images = adversarial
        network.train()
    F.cross_entropy(network(images), batch.label, label_smoothing=0.1).backward()
    optimizer.step()
    return network.state_dict()


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_training_is_the_papers_loop(tmp_path, attack):
    # With seed 1 an activation lies on the kink of a ReLU, where fp32 and float64 gradients differ by a tenth.
    seed_everything(2)
    module = StandardModule(NETWORK, SETTINGS) if attack is None else AdversarialModule(NETWORK, SETTINGS, attack)
    expected = by_hand(module.model, attack)
    # One step: rounding that crosses the kink of a ReLU grows from step to step, in either loop.
    fit(module, tmp_path, limit_train_batches=1)
    # The order of floating-point sums differs: a step of SGD, batch norm's statistics included, agrees to 1e-4.
    for name, tensor in module.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_the_accuracy_on_what_is_trained_is_logged(tmp_path):
    torch.manual_seed(0)
    module = StandardModule(NETWORK, SETTINGS)
    batch = next(iter(Loader()))
    with torch.no_grad():
        right = (copy.deepcopy(module.model).train()(batch.image).argmax(1) == batch.label).float().mean()
    assert right not in (0.0, 0.5, 1.0)
    metrics = fit(module, tmp_path, limit_train_batches=1).callback_metrics
    assert float(metrics["train/accuracy"]) == float(right)


def test_random_starts_follow_from_seed_and_step(tmp_path):
    def train(seed):
        seed_everything(3)
        module = AdversarialModule(NETWORK, SETTINGS, PGD(eps=0.5, step_size=0.25, steps=1, start="sphere"))
        seed_everything(seed)
        fit(module, tmp_path)
        return module.model.state_dict()["network.fc.weight"]

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


@pytest.mark.parametrize("scheme", [StandardModule, AdversarialModule])
def test_bf16_mixed_trains_with_fp32_weights(tmp_path, scheme):
    module = scheme(NETWORK, SETTINGS)
    before = module.model.network.fc.weight.clone()
    fit(module, tmp_path, precision="bf16-mixed")
    assert module.model.network.fc.weight.dtype == torch.float32
    assert not torch.equal(before, module.model.network.fc.weight)


class Recorder(Callback):
    """Keeps a weight as it is after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.model.network.fc.weight.detach().clone())


def test_ema_averages_the_weights(tmp_path):
    seed_everything(1)
    module = StandardModule(NETWORK, SETTINGS)
    recorder = Recorder()
    fit(module, tmp_path, callbacks=[recorder, EMAWeightAveraging(decay=0.75)])
    expected = recorder.seen[0]
    for weight in recorder.seen[1:]:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(module.model.network.fc.weight.detach(), expected)
    assert not torch.equal(expected, recorder.seen[-1])


def test_a_module_says_all_that_identifies_its_network():
    module = StandardModule(NETWORK, SETTINGS)
    described = module.describe()
    settings = described.pop("settings")
    network = module.classifier.network
    assert described == {
        "module": "StandardModule",
        "network": "lit_robust/resnet_tiny",
        "num_classes": 4,
        "weights": None,
        "weights_sha256": weights_digest(network),
        "normalisation": {
            "mean": pytest.approx(module.classifier.mean.flatten().tolist()),
            "std": pytest.approx(module.classifier.std.flatten().tolist()),
        },
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    assert sorted(settings) == ["mixing", "optimisation"]
    assert (settings["optimisation"]["learning_rate"], settings["optimisation"]["label_smoothing"]) == (0.05, 0.1)


def test_checkpoint_holds_plain_values_and_builds_the_module_again(tmp_path):
    module = AdversarialModule(NETWORK, SETTINGS, ATTACK)
    trainer = fit(module, tmp_path)
    path = tmp_path / "module.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    again = AdversarialModule.load_from_checkpoint(path)
    assert (again.network, again.optimisation, again.attack) == (module.network, SETTINGS, ATTACK)
    assert again.describe() == module.describe()


def test_a_checkpoint_is_of_the_class_that_it_names(tmp_path):
    trainer = fit(AdversarialModule(NETWORK, SETTINGS, ATTACK), tmp_path)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    assert type(ClassifierModule.load_from_checkpoint(tmp_path / "module.ckpt")) is AdversarialModule
    with pytest.raises(UserError, match=r"AdversarialModule', which is not an imported StandardModule"):
        StandardModule.load_from_checkpoint(tmp_path / "module.ckpt")
    (tmp_path / "text.ckpt").write_text("weights\n")
    with pytest.raises(UserError, match=r"text\.ckpt is not a checkpoint, or not whole: give a file"):
        ClassifierModule.load_from_checkpoint(tmp_path / "text.ckpt")


def test_a_checkpoint_says_by_itself_how_its_images_are_normalised(tmp_path):
    """The file that training started from may have said it, and may be gone."""
    start = tmp_path / "start.safetensors"
    state = StandardModule(NETWORK).classifier.network.state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        start,
        {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"},
    )
    trainer = fit(StandardModule(Network(NETWORK.name, 4, str(start)), SETTINGS), tmp_path)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    start.unlink()
    again = ClassifierModule.load_from_checkpoint(tmp_path / "module.ckpt")
    assert again.classifier.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    # A network that is named is taken as it is, and not the checkpoint's with its file for weights.
    given = Network(NETWORK.name, 4, mean=(0.2, 0.2, 0.2), std=(0.4, 0.5, 0.6))
    assert ClassifierModule.load_from_checkpoint(tmp_path / "module.ckpt", network=given).network == given
    with pytest.raises(UserError, match=r"normalises by the mean \[0\.1, 0\.2, 0\.3\], this one by \[0\.485"):
        fit_from(StandardModule(NETWORK), tmp_path / "module.ckpt", tmp_path)


def make_net(num_classes):
    return torch.nn.Sequential(torch.nn.Conv2d(3, num_classes, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def test_a_checkpoint_calls_no_code_of_the_users_that_is_not_named(tmp_path, monkeypatch):
    own = types.ModuleType("own_nets")
    own.make_net = make_net
    monkeypatch.setitem(sys.modules, "own_nets", own)
    network = Network("own_nets:make_net", 4)
    trainer = fit(StandardModule(network, SETTINGS), tmp_path)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    with pytest.raises(UserError, match="is of own_nets:make_net, which is called only where you name it"):
        ClassifierModule.load_from_checkpoint(tmp_path / "module.ckpt")
    again = ClassifierModule.load_from_checkpoint(tmp_path / "module.ckpt", network=network)
    assert again.describe()["weights_sha256"] == trainer.lightning_module.describe()["weights_sha256"]


def test_checkpoint_of_another_network_is_refused(tmp_path):
    trainer = fit(StandardModule(NETWORK, SETTINGS), tmp_path)
    path = tmp_path / "module.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match="of another network"):
        fit_from(StandardModule(Network("lit_robust/resnet_small", 4)), path, tmp_path)
    with pytest.raises(UserError, match="has 4 classes.*set num_classes to 4"):
        fit_from(StandardModule(Network("lit_robust/resnet_tiny", 7)), path, tmp_path)


def test_a_checkpoint_with_other_tensors_than_the_network_is_refused():
    module = StandardModule(NETWORK, SETTINGS)
    state = module.state_dict()
    module.on_load_checkpoint({"state_dict": dict(state)})
    with pytest.raises(
        UserError, match=r"StandardModule differ in 1 tensors besides the network's \(first loss\.weight\)"
    ):
        module.on_load_checkpoint({"state_dict": {**state, "loss.weight": torch.ones(2)}})
    with pytest.raises(UserError, match=r"The checkpoint holds NaN or infinite numbers in fc\.bias"):
        module.on_load_checkpoint({"state_dict": {**state, "model.network.fc.bias": torch.full((4,), torch.nan)}})


def fit_from(module, path, tmp_path):
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(module, Loader(), ckpt_path=path)


class Plain(Dataset):
    """The first batches' images and labels as other people's data sets give them."""

    def __init__(self, normalised=False):
        batches = list(Loader())
        images = torch.cat([batch.image for batch in batches])
        self.images = images * 4 - 2 if normalised else images
        self.labels = torch.cat([batch.label for batch in batches])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        return self.images[number], int(self.labels[number])


@pytest.mark.parametrize("kind", [StandardModule, AdversarialModule])
def test_plain_batches_train_as_ours_do(tmp_path, kind):
    attack = (PGD(norm="l2", eps=0.5, step_size=0.25, steps=2, start="ball"),) if kind is AdversarialModule else ()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    states = []
    for loader in (Loader(), DataLoader(Plain(), batch_size=4)):
        seed_everything(2)
        module = kind(NETWORK, SETTINGS, *attack)
        trainer = Trainer(max_epochs=2, enable_model_summary=False, default_root_dir=tmp_path, **options)
        # Random starts follow from a sample's number: the same in every epoch, and in validation between.
        trainer.fit(module, loader, loader)
        states.append((module.state_dict(), float(trainer.callback_metrics["val/top1"])))
    (first, one), (second, other) = states
    assert one == other
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, msg=name)


def test_normalised_images_of_a_plain_loader_are_refused(tmp_path):
    module = StandardModule(NETWORK, SETTINGS)
    with pytest.raises(UserError, match="take Normalize out of its transform"):
        fit(module, tmp_path, loader=DataLoader(Plain(normalised=True), batch_size=4))
