"""The threat models of one callback, through `lit-robust test`, against attacks run by hand."""

import numpy as np
import pytest
import torch
import yaml
from naming import read_checked
from pytorch_lightning import Trainer
from tiny_sets import SMALL, write

from lit_robust.attacks import APGD, PGD, AutoAttack, Square
from lit_robust.callbacks import AdversarialAccuracy, CleanAccuracy
from lit_robust.cli import main
from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import stream_seed
from lit_robust.data import ImageNetADataModule, ImageNetDataModule
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.models import Network, build_classifier
from lit_robust.modules import StandardModule
from lit_robust.reference import imagenet_subset

CALLBACK = "lit_robust.callbacks.AdversarialAccuracy"
ATTACK = PGD(eps=1.0, step_size=0.5, steps=3, start="ball")


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """Weights of two small networks, trained for a moment on the toy data, so that attacks transfer a little."""
    folder = tmp_path_factory.mktemp("weights")
    data = ImageNetDataModule(toy, eval_batch_size=41, num_workers=0, evaluation=EvaluationCrop(None, None))
    data.setup("test")
    batch = next(iter(data.test_dataloader()["imagenet"])).as_float()
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_classifier(Network("lit_robust/resnet_tiny", 8)).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(batch.image), batch.label).backward()
            optimizer.step()
        torch.save(network.network.state_dict(), folder / f"{seed}.pt")
    return folder, batch


def results_of(toy, folder, weights, callbacks):
    member = {"evaluation": {"resize": None, "crop": None}, "eval_batch_size": 9, "num_workers": 0}
    config = {
        "seed_everything": 5,
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "logger": False,
            "enable_progress_bar": False,
            "accelerator": "cpu",
            "callbacks": [
                {"class_path": "lit_robust.callbacks.AdversarialAccuracy", "init_args": c} for c in callbacks
            ],
        },
        "model": {
            "class_path": "lit_robust.modules.StandardModule",
            "init_args": {"network": {"name": "lit_robust/resnet_tiny", "num_classes": 8, "weights": str(weights)}},
        },
        "data": {
            "class_path": "lit_robust.data.ImageNetDataModule",
            "init_args": {"root": str(toy), **member},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "-c", str(folder / "config.yaml")]) == 0
    return read_checked(folder / "run")


def by_hand(attacked, tested, batch: Batch, attack):
    """Separate full attacks on every image, with the random starts of the run."""
    starts = [torch.Generator().manual_seed(stream_seed(5, "attack start, test", n)) for n in batch.index.tolist()]
    images = attack.perturb(attacked.eval(), batch.image, batch.label, generator=starts)
    with torch.no_grad():
        clean, found = (tested.eval()(x).argmax(1) == batch.label for x in (batch.image, images))
    return clean & found


def network(folder, seed):
    return build_classifier(Network("lit_robust/resnet_tiny", 8, weights=str(folder / f"{seed}.pt")))


def test_a_limit_attacks_some_images_alone_the_same_ones_always(toy, tmp_path, trained):
    weights, batch = trained
    attack = {
        "class_path": "lit_robust.attacks.PGD",
        "init_args": {"eps": 1.0, "step_size": 0.5, "steps": 3, "start": "ball"},
    }
    (result,) = results_of(toy, tmp_path, weights / "0.pt", [{"attack": attack, "limit": 15}]).results
    chosen = np.random.default_rng(stream_seed(0, "limit of an attack")).choice(41, 15, replace=False)
    some = batch.select(torch.isin(batch.index, torch.from_numpy(chosen)))
    model = network(weights, 0)
    assert result.value == pytest.approx(float(by_hand(model, model, some, ATTACK).float().mean()), abs=1.01 / 15)
    assert (result.count, result.protocol["partial"], result.protocol["full_count"]) == (15, True, 41)
    with pytest.raises(UserError, match="limit is 0: give a number of images above 0"):
        AdversarialAccuracy(ATTACK, limit=0)


def test_white_and_black_box_are_the_attacks_run_by_hand(toy, tmp_path, trained):
    weights, batch = trained
    attack = {
        "class_path": "lit_robust.attacks.PGD",
        "init_args": {"eps": 1.0, "step_size": 0.5, "steps": 3, "start": "ball"},
    }
    surrogate = {"name": "lit_robust/resnet_tiny", "num_classes": 8, "weights": str(weights / "1.pt")}
    found = results_of(
        toy,
        tmp_path,
        weights / "0.pt",
        [
            {"attack": attack, "eps": [0.5]},
            {"attack": attack, "eps": [0.5], "threat_model": "black-box", "surrogate": surrogate},
        ],
    )
    values = {result.metric: result for result in found.results}
    first, second = network(weights, 0), network(weights, 1)
    for stem, attacked in (("adversarial_accuracy_l2", first), ("adversarial_accuracy_black_box_l2", second)):
        weak = by_hand(attacked, first, batch, ATTACK.with_eps(0.5))
        strong = weak & by_hand(attacked, first, batch, ATTACK)
        # One image of 41 may fall on the other side by rounding, as the batches differ.
        for eps, standing in (("0.5", weak), ("1", strong)):
            assert values[f"{stem}_eps_{eps}"].value == pytest.approx(float(standing.float().mean()), abs=1.01 / 41)
            assert values[f"{stem}_eps_{eps}"].count == 41
    white, black = values["adversarial_accuracy_l2_eps_1"], values["adversarial_accuracy_black_box_l2_eps_1"]
    assert white.value < black.value < 1, "attacks on another network are weaker, and not harmless"
    assert (white.protocol["threat_model"], black.protocol["threat_model"]) == ("white-box", "black-box")
    assert black.protocol["surrogate"]["network"] == "lit_robust/resnet_tiny"
    assert white.protocol["attack"]["verdict"] == "broken at the last iterate"
    pairs = [example for example in found.examples if example.kind == "adversarial"]
    assert len({example.index for example in pairs}) == 8


def test_gray_box_attacks_the_backbone_and_tests_the_whole(toy, tmp_path, trained):
    weights, batch = trained

    class Memory(StandardModule):
        """A module with a backbone inside: its answers are those of another network."""

        def __init__(self):
            super().__init__(Network("lit_robust/resnet_tiny", 8, weights=str(weights / "0.pt")))
            self.backbone = network(weights, 1)

    callback = AdversarialAccuracy(ATTACK, threat_model="gray-box", examples=0)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    data = ImageNetDataModule(toy, eval_batch_size=9, num_workers=0, evaluation=EvaluationCrop(None, None))
    from pytorch_lightning import seed_everything

    seed_everything(5)
    Trainer(callbacks=[callback], **options).test(Memory(), data, verbose=False)
    expected = by_hand(network(weights, 1), network(weights, 0), batch, ATTACK)
    assert callback.results[0].metric == "adversarial_accuracy_gray_box_l2_eps_1"
    assert callback.results[0].value == pytest.approx(float(expected.float().mean()), abs=1.01 / 41)
    plain = AdversarialAccuracy(ATTACK, threat_model="gray-box")
    with pytest.raises(UserError, match="StandardModule is a single network: use white-box"):
        Trainer(callbacks=[plain], **options).test(StandardModule(Network("lit_robust/resnet_tiny", 8)), data)


@pytest.mark.parametrize(("threat_model", "surrogate"), [("black-box", None), ("white-box", Network())])
def test_a_surrogate_belongs_to_black_box(threat_model, surrogate):
    with pytest.raises(UserError, match="set both or neither"):
        AdversarialAccuracy(ATTACK, threat_model=threat_model, surrogate=surrogate)
    with pytest.raises(UserError, match="hoose one of white-box, memory-surrogate, gray-box, black-box"):
        AdversarialAccuracy(ATTACK, threat_model="red-box")


@pytest.mark.parametrize("attack", [PGD(keep="first"), AutoAttack()])
def test_a_transfer_does_not_end_where_the_surrogate_errs(attack):
    with pytest.raises(UserError, match="would end where the network it sees errs"):
        AdversarialAccuracy(attack, threat_model="black-box", surrogate=Network())


def test_two_results_of_one_name_are_refused():
    with pytest.raises(UserError, match="the same to four digits"):
        AdversarialAccuracy(PGD(eps=1.00001), eps=[1.00002])


def test_a_surrogate_of_other_classes_is_refused(toy, tmp_path):
    other = Network("lit_robust/resnet_tiny", 4)
    callback = AdversarialAccuracy(ATTACK, threat_model="black-box", surrogate=other)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    data = ImageNetDataModule(toy, eval_batch_size=9, num_workers=0, evaluation=EvaluationCrop(None, None))
    with pytest.raises(UserError, match="surrogate has 4 classes and the network under test 8"):
        Trainer(callbacks=[callback], **options).test(StandardModule(Network("lit_robust/resnet_tiny", 8)), data)


def test_every_image_is_in_autoattack_s_counts(toy, tmp_path, trained, monkeypatch):
    weights, batch = trained
    monkeypatch.setattr(
        AutoAttack,
        "attacks",
        lambda self: {"apgd-ce": APGD(self.norm, self.eps, steps=3), "square": Square(self.norm, self.eps, queries=9)},
    )
    attack = {"class_path": "lit_robust.attacks.AutoAttack", "init_args": {"norm": "l2", "eps": 0.2}}
    found = results_of(toy, tmp_path, weights / "0.pt", [{"attack": attack, "eps": [0.4]}])
    with torch.no_grad():
        mistakes = int((network(weights, 0).eval()(batch.image).argmax(1) != batch.label).sum())
    weak, strong = (
        {r.metric: r for r in found.results}[f"adversarial_accuracy_l2_eps_{eps}"] for eps in ("0.2", "0.4")
    )
    assert 0 < mistakes < 41
    broken = [round(41 * (1 - result.value)) for result in (weak, strong)]
    assert mistakes < broken[0] < broken[1]
    assert list(weak.protocol["broken_by"]) == ["clean", "apgd-ce", "square"]
    assert list(strong.protocol["broken_by"]) == ["clean", "smaller eps", "apgd-ce", "square"]
    assert strong.protocol["broken_by"]["smaller eps"] == broken[0] - mistakes
    for result, count, before in zip((weak, strong), broken, (mistakes, broken[0]), strict=True):
        by, flags = result.protocol["broken_by"], result.protocol["flags"]
        assert by["clean"] == mistakes
        assert sum(by.values()) == count
        assert (flags["images"], flags["unattacked"]) == (41, before)
        assert flags["gained_by_square"] == by["square"]


def test_a_scaled_network_is_as_robust_in_a_test_and_a_hidden_gradient_is_warned_of(toy, tmp_path, trained):
    weights, _ = trained
    state = torch.load(weights / "0.pt", weights_only=True)
    torch.save(
        {name: 1000 * tensor if name.startswith("fc.") else tensor for name, tensor in state.items()},
        tmp_path / "scaled.pt",
    )
    torch.save(
        {name: 0 * tensor if name == "fc.weight" else tensor for name, tensor in state.items()}, tmp_path / "blind.pt"
    )
    attack = {"class_path": "lit_robust.attacks.PGD", "init_args": {"eps": 0.4, "step_size": 0.1, "steps": 5}}
    values = {}
    for name, file in (
        ("plain", weights / "0.pt"),
        ("scaled", tmp_path / "scaled.pt"),
        ("blind", tmp_path / "blind.pt"),
    ):
        (tmp_path / name).mkdir()
        values[name] = results_of(toy, tmp_path / name, file, [{"attack": attack, "eps": [0.1, 0.2]}]).results
    plain, scaled = ([result.value for result in values[name]] for name in ("plain", "scaled"))
    assert 0.1 < plain[2] < plain[0] < 0.9, "the strengths have to matter"
    # One image of 41 is 2.4 points, and may round to the other side.
    assert scaled == pytest.approx(plain, abs=1.01 / 41)
    assert not any(result.warnings for result in (*values["plain"], *values["scaled"]))
    for result in values["blind"]:
        flags = result.protocol["flags"]
        right = 41 - flags["unattacked"]
        assert 0 < right == flags["zero_gradient"] == flags["unmoved"] == round(41 * result.value)
        assert f"zero or not finite for {right} of {right} images, of which {right} withstood" in result.warnings[0]


class AmongA(StandardModule):
    """Sure of class 5, which is not one of ImageNet-A's; of those, one or the other by an image's brightness."""

    def __init__(self):
        super().__init__(Network("lit_robust/resnet_tiny", num_classes=1000))
        dark, bright = imagenet_subset("imagenet-a")[:2]
        self.weight = torch.zeros(1000)
        self.weight[bright] = 1000.0
        self.bias = torch.full((1000,), -50.0)
        # Images of red 0, 1 and 2, and of blue 7, of 255: the boundary is between the last two.
        self.bias[[5, dark, bright]] = torch.tensor([100.0, 0.0, -1000 * 8.5 / 765])
        self.model = Brightness(self.weight, self.bias)


class Brightness(torch.nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images):
        return images.mean((1, 2, 3))[:, None] * self.weight + self.bias


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_attack_and_verdict_are_among_the_set_s_classes(tmp_path, loss):
    classes = imagenet_subset("imagenet-a")
    write(tmp_path / "imagenet-a", "test", [classes[0], classes[0], classes[1]])
    attack = PGD(eps=1e-6, step_size=1e-6, steps=2, loss=loss)
    callback = AdversarialAccuracy(attack, eps=[0.1], dataset="imagenet-a")
    clean = CleanAccuracy("imagenet-a")
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    data = ImageNetADataModule(tmp_path, evaluation=EvaluationCrop(None, None), **SMALL)
    Trainer(callbacks=[clean, callback], **options).test(AmongA(), data, verbose=False)
    top1 = clean.results[0]
    assert (top1.metric, top1.value) == ("top1", 1.0)
    # At an eps of nearly nothing adversarial accuracy is top-1; at one of six boundaries' width nothing is left.
    assert [result.value for result in callback.results] == [1.0, 0.0]
    assert {r.protocol["decided_among"] for r in (top1, *callback.results)} == {200}
    said = {entry[1]["adversarial"] for entry in callback.gallery.kept.values()}
    assert said == {callback.described.class_name(number) for number in classes[:2]}
