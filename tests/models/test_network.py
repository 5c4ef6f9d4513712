import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.models import Classifier, Network, build_classifier, weights_digest
from lit_robust.models.foreign.convert import convert

SMALL = Network("lit_robust/resnet_tiny", num_classes=5)


@pytest.mark.parametrize(
    "name", ["torchvision/resnet18", "torchvision/googlenet", "torchvision/squeezenet1_1", "timm/resnet10t",
             "lit_robust/resnet_small"]
)  # fmt: skip
def test_networks_by_name(name):
    model = build_classifier(Network(name, num_classes=7)).train()
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)


def test_normalises_inside():
    spec = Network("lit_robust/resnet_tiny", 5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = build_classifier(spec).eval()
    images = torch.rand(2, 3, 32, 32)
    by_hand = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.equal(model(images), model.network(by_hand))


def test_features_are_the_layers_output():
    model = build_classifier(SMALL).eval()
    images = torch.rand(2, 3, 32, 32)
    features = model.features(images, "avgpool")
    assert features.shape == (2, 128, 1, 1)
    assert torch.allclose(model.network.fc(features.flatten(1)), model(images))
    with pytest.raises(UserError, match="no layer 'pool'.*avgpool"):
        model.features(images, "pool")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    source = build_classifier(SMALL)
    file = tmp_path / f"weights{suffix}"
    state = {name: tensor.contiguous() for name, tensor in source.network.state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, file)
    loaded = build_classifier(Network(SMALL.name, 5, weights=str(file)))
    assert weights_digest(loaded) == weights_digest(source) != weights_digest(build_classifier(SMALL))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            Network("resnet50"),
            r"Unknown network 'resnet50' \(did you mean torchvision/resnet50\?\): write torchvision/<name>",
        ),
        (Network("resnet5O"), r"Unknown network 'resnet5O' \(did you mean torchvision/resnet50\?\)"),
        (Network("deit_smal_patch16_224"), r"\(did you mean timm/deit_small_patch16_224\?\)"),
        (Network("xyz"), "Unknown network 'xyz': write torchvision/<name>"),
        (Network("torchvision/resnet5"), "torchvision has no classifier 'resnet5'"),
        (Network("timm/resnetfifty"), "timm has no network 'resnetfifty'"),
        (Network("lit_robust/vgg"), "Unknown network lit_robust/vgg"),
        (Network("torchvision/resnet18", weights="IMAGENET"), "has no weights 'IMAGENET'.*IMAGENET1K_V1"),
        (Network("torchvision/resnet18", 10, weights="pretrained"), "1000 classes, but num_classes is 10"),
        (Network("lit_robust/resnet_tiny", weights="nowhere.pt"), "no weights file nowhere.pt"),
    ],
)
def test_mistakes_in_one_sentence(spec, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        build_classifier(spec)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_or_class_count(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(build_classifier(SMALL).network.state_dict(), file)
    with pytest.raises(UserError, match="has 5 classes.*set num_classes to 5"):
        build_classifier(Network(SMALL.name, 8, weights=str(file)))
    with pytest.raises(UserError, match="of another network"):
        build_classifier(Network("lit_robust/resnet_small", 5, weights=str(file)))
    with pytest.raises(UserError, match="of another network"):
        build_classifier(Network("torchvision/resnet18", 5, weights=str(file)))


FLOATS = {
    "int8": lambda t: (t * 100).to(torch.int8),
    "int64": lambda t: (t * 100).long(),
    "bool": lambda t: t > 0,
    "complex64": lambda t: t.to(torch.complex64),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_weights_that_are_no_floats_are_refused(tmp_path, kind):
    state = build_classifier(SMALL).network.state_dict()
    state["fc.weight"] = FLOATS[kind](state["fc.weight"])
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt holds fc\.weight as {kind}, where the network has floats"):
        build_classifier(Network(SMALL.name, 5, weights=str(tmp_path / "w.pt")))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, number):
    state = build_classifier(SMALL).network.state_dict()
    state["fc.bias"] = torch.tensor([0, 1, 2, 3, number], dtype=torch.float64)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt holds NaN or infinite numbers in fc\.bias"):
        build_classifier(Network(SMALL.name, 5, weights=str(tmp_path / "w.pt")))
    for network in (SMALL.name, None):
        with pytest.raises(UserError, match=r"in fc\.bias"):
            convert(tmp_path / "w.pt", tmp_path / "w.safetensors", network, 5)
    state["fc.bias"] = torch.ones(5, dtype=torch.float8_e4m3fn)
    state["conv1.weight"] = state["conv1.weight"].double()
    torch.save(state, tmp_path / "w.pt")
    assert build_classifier(Network(SMALL.name, 5, weights=str(tmp_path / "w.pt"))).network.fc.bias.tolist() == [1] * 5


def test_files_that_hold_code_or_nothing(tmp_path):
    file = tmp_path / "code.pt"
    torch.save({"model": build_classifier(SMALL)}, file)
    with pytest.raises(UserError, match="never run here"):
        build_classifier(Network(SMALL.name, 5, weights=str(file)))
    torch.save([1, 2], file)
    with pytest.raises(UserError, match="holds no state dict"):
        build_classifier(Network(SMALL.name, 5, weights=str(file)))
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="code.pt"):
        build_classifier(Network(SMALL.name, 5, weights=str(file)))


def test_digest_depends_on_values_alone():
    model = build_classifier(SMALL)
    before = weights_digest(model)
    assert before == weights_digest(model.to(memory_format=torch.channels_last))
    with torch.no_grad():
        model.network.fc.bias[0] += 1e-3
    assert weights_digest(model) != before


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("torchvision/resnet5O", "resnet50"),
        ("timm/resnet5O", "resnet50"),
        ("timm/vit_smal_patch16_224", "vit_small_patch16_224"),
        ("torchvison/resnet50", "torchvision"),
    ],
)
def test_the_nearest_name_is_told(name, near):
    with pytest.raises(UserError, match=rf"\(did you mean {near}\?\): "):
        build_classifier(Network(name))


NETS = """
import torch
from torch import nn

SIZE = 3

def make_net(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def by_keywords(**options):
    return make_net(**options)

class Fixed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))

def wrong():
    return "no network"
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A package of the user's in the folder where the command runs; returns its name."""
    package = tmp_path / "users_own"
    package.mkdir()
    (package / "nets.py").write_text(NETS)
    (package / "needs.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield package.name
    for module in [module for module in sys.modules if module.startswith(package.name)]:
        del sys.modules[module]


def test_a_network_of_the_users_own(tmp_path, nets):
    spec = Network(f"{nets}.nets:make_net", 5, arguments={"width": 6})
    model = build_classifier(spec).eval()
    images = torch.rand(2, 3, 8, 8)
    assert model.network[0].out_channels == 6
    assert torch.equal(model(images), model.network((images - model.mean) / model.std))
    assert build_classifier(Network(f"{nets}.nets:by_keywords", 7))(images).shape == (2, 7)
    assert build_classifier(Network(f"{nets}.nets:Fixed", 5))(images).shape == (2, 5)
    torch.save({"state_dict": {f"net.{n}": t for n, t in model.network.state_dict().items()}}, tmp_path / "w.pt")
    loaded = build_classifier(Network(spec.name, 5, str(tmp_path / "w.pt"), arguments=spec.arguments))
    assert weights_digest(loaded) == weights_digest(model)
    with pytest.raises(UserError, match="of another network: 0.weight has shape"):
        build_classifier(Network(spec.name, 5, str(tmp_path / "w.pt")))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("nowhere.nets:make_net", {}, "no module nowhere, which .* needs: install it"),
        ("{0}.needs:make_net", {}, "no module a_module_that_is_not_there, which"),
        ("{0}.nets:make_nets", {}, r"has no 'make_nets' \(did you mean make_net\?\)"),
        ("{0}.nets:SIZE", {}, "is a int: name a class or function"),
        ("{0}.nets:wrong", {}, "returned a str: return a torch.nn.Module"),
        ("{0}.nets:", {}, "is not an import path: write <module>:<callable>"),
        ("./nets.py:make_net", {}, "is not an import path"),
        ("{0}.nets:make_net", {"arguments": {"depth": 3}}, r"make_net\(num_classes, width=4\) cannot be called with"),
        ("{0}.nets:make_net", {"arguments": {"num_classes": 3}}, "set the network's own num_classes"),
        ("{0}.nets:make_net", {"weights": "pretrained"}, "has no pretrained weights 'pretrained'"),
        ("torchvision/resnet18", {"arguments": {"width": 3}}, "torchvision/resnet18 takes none"),
    ],
)
def test_mistakes_of_an_import_path(nets, name, options, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        build_classifier(Network(name.format(nets), 5, **options))
    assert "\n" not in str(caught.value)


class Attending(nn.Module):
    """Logits by an attention, whose output is a tuple and whose last projection is no call of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.head = nn.Linear(3, 4)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return build_classifier(Network("torchvision/resnet18", 5)).eval()


def test_layers_whose_output_is_changed_in_place(resnet):
    """Batch norms of a residual block, which an in-place ReLU and an in-place sum follow."""
    images = torch.rand(2, 3, 64, 64)
    block = resnet.network.layer4[1]
    with torch.no_grad():
        before = resnet.features(images, "layer4.0")
        first = block.bn1(block.conv1(before))
        second = block.bn2(block.conv2(F.relu(first)))
        found = {layer: resnet.features(images, f"layer4.1{layer}") for layer in (".bn1", ".bn2", "")}
    # The same kernels on the same numbers, of which the memory layout alone may differ.
    torch.testing.assert_close(found[".bn1"], first)
    torch.testing.assert_close(found[".bn2"], second)
    torch.testing.assert_close(found[""], F.relu(second + before))
    assert first.min() < 0
    assert second.min() < 0


def test_a_module_called_twice_gives_its_last_output(resnet):
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(resnet.features(images, "layer4.1.relu"), resnet.features(images, "layer4.1"))


def test_gradients_go_through_the_features():
    torch.manual_seed(0)
    model = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    weights = torch.randn(2, 16, 32, 32)
    (found,) = torch.autograd.grad((model.features(images, "bn1") * weights).sum(), images)
    by_hand = model.network.bn1(model.network.conv1((images - model.mean) / model.std))
    (expected,) = torch.autograd.grad((by_hand * weights).sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.abs().max() > 0.1


def test_layers_without_a_tensor():
    model = Classifier(Attending(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()
    with pytest.raises(UserError, match="'attention' gives a tuple, not one tensor: choose another"):
        model.features(torch.rand(2, 3, 4, 4), "attention")
    with pytest.raises(UserError, match="never calls its layer 'attention.out_proj' by itself: choose another"):
        model.features(torch.rand(2, 3, 4, 4), "attention.out_proj")
    assert not model.network.attention._forward_hooks
