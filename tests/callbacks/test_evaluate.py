"""`evaluate`: one call on a network and a loader, held to a loop by hand."""

import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from lit_robust import evaluate
from lit_robust.attacks import FAB, PGD, Attack, AttackResult
from lit_robust.attacks.attack import score
from lit_robust.callbacks import (
    AdversarialAccuracy,
    CalibrationEvaluation,
    CleanAccuracy,
    CorruptionEvaluation,
    EvaluationCallback,
    OodEvaluation,
    ShapeBiasEvaluation,
)
from lit_robust.callbacks.plain import UNCHECKED
from lit_robust.core.errors import UserError
from lit_robust.core.results import RunResults
from lit_robust.data import CueConflictDataModule, EvaluationCrop
from lit_robust.metrics import OodDetection, corruption_error
from lit_robust.models import Network
from lit_robust.modules import StandardModule
from lit_robust.reference import benchmark_corruptions
from lit_robust.report import write_report

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ATTACK = PGD(norm="linf", eps=0.2 / 255, steps=3)
QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture
def network():
    torch.manual_seed(1)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(features, nn.Linear(32, 8)).train()


@pytest.fixture
def data(network):
    """21 images, of which the network, given normalised ones, gets 15 right."""
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (21, 3, 16, 16), generator=drawn, dtype=torch.uint8)
    answers = by_hand(network, images)
    return TensorDataset(images, torch.where(torch.arange(21) < 15, answers, (answers + 1) % 8))


def by_hand(network, images):
    modes = network.training
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        answers = network.eval()((images / 255 - mean) / std).argmax(1)
    network.train(modes)
    return answers


def test_a_loader_an_attack_and_a_measure(network, data, tmp_path, capfd):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state, seed = torch.get_rng_state(), os.environ.get("PL_GLOBAL_SEED")
    measures = [CleanAccuracy(), CalibrationEvaluation(), ATTACK]
    found = evaluate(network, DataLoader(data, batch_size=8), measures, mean=MEAN, std=STD, **QUIET)
    values = {(one.dataset, one.metric): one for one in found.results}
    assert values["tensordataset", "top1"].value == 15 / 21
    assert {one.dataset for one in found.results} == {"tensordataset"}
    assert all(UNCHECKED not in one.warnings for one in found.results)
    adversarial = next(one for one in found.results if one.measure == "adversarial_accuracy")
    assert 0 < adversarial.value < 15 / 21
    # The network is as it was, and so is the caller's random state.
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert os.environ.get("PL_GLOBAL_SEED") == seed
    assert measures[0].dataset == "imagenet"
    assert found.model["network"] == found.run["name"] == "Sequential"
    assert found.examples == []
    assert capfd.readouterr() == ("", "")
    # What it returns is saved, read and shown as a run of the command line is.
    assert RunResults.load(found.save(tmp_path / "mine")) == found
    page = write_report([tmp_path / "mine"], tmp_path / "page.html")
    assert "71.4" in page.read_text()
    frame = found.to_frame()
    assert len(frame) == len(found.results)
    row = frame[frame.measure == "adversarial_accuracy"].iloc[0]
    assert (row.value, row.eps, row["count"]) == (adversarial.value, ATTACK.eps, 21)
    assert np.isnan(frame[frame.metric == "top1"].eps.iloc[0])


def test_the_attack_is_that_on_the_normalised_network(network, data):
    (result,) = evaluate(network, data, [ATTACK], mean=MEAN, std=STD, batch_size=5, **QUIET).results

    class Normalised(nn.Module):
        def forward(self, images):
            return network((images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1))

    network.eval()
    images, labels = data.tensors
    success = ATTACK(Normalised(), images / 255, labels).success
    assert result.value == 1 - success.double().mean()


class Pictures(Dataset):
    """PIL images and labels, as torchvision's CIFAR10 gives them."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, number):
        image, label = self.data[number]
        return Image.fromarray(image.permute(1, 2, 0).numpy()), int(label)


class Dicts(Pictures):
    """Samples as Hugging Face's data sets give them."""

    def __getitem__(self, number):
        return dict(zip(("img", "label"), super().__getitem__(number), strict=True))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (lambda data: data, "tensordataset"),
        (lambda data: data.tensors, "tensordataset"),
        (lambda data: tuple(part.numpy() for part in data.tensors), "tensordataset"),
        (Pictures, "pictures"),
        (lambda data: Subset(Pictures(data), range(21)), "pictures"),
        (lambda data: {"mine": Pictures(data)}, "mine"),
        (Dicts, "dicts"),
    ],
)
def test_all_forms_of_data_give_the_same(network, data, given, name):
    found = evaluate(network, given(data), [CleanAccuracy()], mean=MEAN, std=STD, batch_size=4, **QUIET)
    assert (found.results[0].dataset, found.results[0].value) == (name, 15 / 21)


def test_folders_of_pictures_and_what_is_kept_of_them(network, data, tmp_path):
    for number, (image, label) in enumerate(Pictures(data)):
        (tmp_path / "val" / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "val" / str(label) / f"{number}.png")
    folder = ImageFolder(tmp_path / "val")
    labels = dict(enumerate(int(name) for name in folder.classes))
    folder.target_transform = labels.__getitem__
    measures = [CleanAccuracy(), AdversarialAccuracy(ATTACK, examples=3)]
    found = evaluate(network, folder, measures, mean=MEAN, std=STD, folder=tmp_path / "run", **QUIET)
    assert found.results[0].value == 15 / 21
    assert len(found.examples) == 3
    assert all((tmp_path / "run" / file).is_file() for one in found.examples for file in one.images.values())
    assert RunResults.load(tmp_path / "run") == found


def test_a_data_module_and_a_module_of_ours(toy):
    whole = CueConflictDataModule(toy, categories="shards", evaluation=EvaluationCrop(None, None), num_workers=0)
    module = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8))
    found = evaluate(module, whole, [ShapeBiasEvaluation()], **QUIET)
    assert found.results[0].dataset == "cue-conflict"
    assert all(one.warnings == () for one in found.results)
    assert found.model["module"] == "StandardModule"
    bare = evaluate(module.classifier, whole, [ShapeBiasEvaluation()], **QUIET)
    assert [one.value for one in bare.results][1:4] == [one.value for one in found.results][1:4]


def test_grey_images(network):
    grey = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images = torch.rand(6, 1, 8, 8)
    found = evaluate(grey, (images, [0, 1] * 3), [CleanAccuracy()], mean=(0.13,), std=(0.31,), **QUIET)
    assert found.results[0].value in [number / 6 for number in range(7)]
    found = evaluate(grey, (images, [0, 1] * 3), [CleanAccuracy()], **QUIET)
    with torch.no_grad():
        expected = (grey(images).argmax(1) == torch.tensor([0, 1] * 3)).double().mean()
    assert found.results[0].value == expected


def test_images_of_other_channels_than_the_mean_are_refused(network):
    with pytest.raises(UserError, match="Images have 1 channels, and mean and std 3: give a number a channel"):
        evaluate(network, (torch.rand(6, 1, 16, 16), [0, 1] * 3), [CleanAccuracy()], mean=MEAN, std=STD, **QUIET)


class Unnamed(Attack):
    def __call__(self, model, images, labels, *, generator=None):
        return images


class Counted(EvaluationCallback):
    """A measure of one's own, on the only set there is."""

    def prepare(self, module, described):
        self.seen = 0

    def update(self, module, batch, logits):
        self.seen += len(batch)

    def compute(self):
        return [self.share("seen", self.seen / 21, protocol={})]


class Unprepared(Counted):
    def __init__(self):
        self.seen = 0


@dataclass
class Careless(Attack):
    """Takes eps as a step of each pixel, whatever norm it says."""

    eps: float = 0.03
    norm: str = "linf"

    def __call__(self, model, images, labels, *, generator=None):
        attacked = (images + self.eps).clamp(0, 1)
        found = score(model, attacked, labels, lambda *of: nn.functional.cross_entropy(*of, reduction="none"))
        return AttackResult(
            attacked, found.success, found.loss, torch.ones_like(labels), torch.zeros_like(labels), found.probabilities
        )


def test_an_attack_that_leaves_its_ball_is_refused(network, data):
    named = {"mean": MEAN, "std": STD, **QUIET}
    assert evaluate(network, data, Careless(), **named).results[0].value <= 15 / 21
    with pytest.raises(
        UserError, match=r"Careless moves images by up to 0\.8\d* in l2, beyond its eps of 0.03: let it"
    ):
        evaluate(network, data, Careless(norm="l2"), **named)


def test_a_measure_of_ones_own_needs_no_set(network, data):
    (found,) = evaluate(network, data, Counted(), **QUIET).results
    assert (found.dataset, found.metric, found.value, found.count) == ("tensordataset", "seen", 1, 21)


class Plain(Unnamed):
    norm, eps = "linf", 0.1


@dataclass(frozen=True)
class NoAttack(Unnamed):
    norm: str = "linf"
    eps: float = 0.1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"measures": []}, "There is nothing to measure"),
        ({"measures": [CleanAccuracy]}, "A measure is CleanAccuracy itself: give objects"),
        ({"measures": ["top1"]}, "A measure is a str"),
        ({"measures": [NoAttack()]}, "The attack NoAttack returned a Tensor: return an AttackResult"),
        ({"measures": [Plain()]}, "Plain is not a dataclass: write @dataclass"),
        ({"measures": [Unnamed()]}, "The attack Unnamed has no norm: give it a norm and an eps"),
        ({"measures": [CorruptionEvaluation()]}, "tensordataset has no corruptions"),
        ({"measures": [CleanAccuracy(), CleanAccuracy()]}, "Two callbacks evaluate"),
        ({"network": lambda images: images}, "The network is a function"),
        ({"mean": MEAN}, "give both"),
        ({"mean": (124, 116, 104), "std": (58, 57, 57)}, "divide them by 255"),
        ({"mean": MEAN, "std": (0.2, 0, 0.2)}, "deviations above 0"),
        ({"mean": 0.5, "std": 0.2}, "give a number a channel"),
        ({"data": 5}, "The data are a int"),
        ({"data": {}}, "empty mapping"),
        ({"data": [1, 2, 3]}, "The data are a list of 3"),
        ({"data": (torch.randn(4, 3, 8, 8), torch.zeros(4).long())}, "take Normalize out of its transform"),
        ({"data": (torch.rand(4, 3, 8, 8) * 255, torch.zeros(4).long())}, "divide them by 255, or give them as uint8"),
        ({"data": (torch.full((4, 3, 8, 8), torch.nan), torch.zeros(4).long())}, "numbers that are not finite"),
        ({"data": (torch.rand(4, 3, 16, 16), torch.full((4,), 9))}, "label 9"),
        ({"data": (torch.rand(4, 3, 8, 8), torch.zeros(4))}, "A label is of torch.float32 and shape"),
        ({"data": (torch.rand(4, 3, 8, 8), torch.eye(4, 8).long())}, r"shape \[8\]: give one whole number an image"),
        ({"data": (torch.rand(4, 3, 8, 8), torch.zeros(3).long())}, r"shapes \[4, 3, 8, 8\] and \[3\]"),
        ({"data": (torch.rand(4, 1, 8, 8), torch.zeros(4).long())}, r"fails on float32 images of shape \[4, 1, 8, 8\]"),
        ({"data": (torch.rand(0, 3, 8, 8), torch.zeros(0).long())}, "The data give no batch"),
        ({"data": torch.rand(4, 3, 8, 8)}, "one Tensor"),
        ({"measures": [Unprepared()]}, r"let its __init__ begin with super\(\).__init__\(dataset\)"),
        ({"data": [DataLoader([1]), DataLoader([1])]}, "The data are several: give loaders by name"),
        ({"data": "data/imagenet"}, "are the path data/imagenet: open it"),
        ({"data": {"image": torch.rand(4, 3, 8, 8), "label": torch.zeros(4)}}, "one Tensor"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).half()}, "a network that computes in float32"),
        ({"device": "meta"}, "device is 'meta', which torch has not here"),
        ({"device": "gpu7"}, "device is 'gpu7'"),
        ({"device": "cuda:99"}, "torch sees"),
    ],
)
def test_mistakes_end_in_a_sentence(network, data, change, sentence):
    given = {"network": network, "data": data, "measures": [CleanAccuracy()], **QUIET, **change}
    with pytest.raises(UserError, match=sentence):
        evaluate(**given)


class Streamed(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3, 8, 8), 1)] * 4)


def test_one_measure_of_an_iterable_data_set(network):
    """Each of two worker processes gives all four images, which nothing but the warning tells."""
    found = evaluate(network, DataLoader(Streamed(), 2, num_workers=2), CleanAccuracy(), **QUIET).results[0]
    assert (found.count, len(found.warnings)) == (8, 2)
    assert "each of the loader's 2 worker processes all samples" in found.warnings[1]
    assert len(evaluate(network, DataLoader(Streamed(), 2), CleanAccuracy(), **QUIET).results[0].warnings) == 1


def test_several_sets_need_names_for_attacks(network, data):
    both = {"one": data, "other": Subset(data, range(8))}
    with pytest.raises(UserError, match="The data have one, other, and PGD names none"):
        evaluate(network, both, [ATTACK], **QUIET)
    measures = [CleanAccuracy("one"), CleanAccuracy("other"), AdversarialAccuracy(ATTACK, dataset="other")]
    found = evaluate(network, both, measures, mean=MEAN, std=STD, **QUIET)
    assert {(one.dataset, one.count) for one in found.results} == {("one", 21), ("other", 8)}


def test_a_set_of_several_parts(network):
    drawn = torch.Generator().manual_seed(7)
    cells = {f"{name}/{severity}": None for name in benchmark_corruptions() for severity in range(1, 6)}
    right = {}
    for cell in cells:
        images = torch.randint(256, (4, 3, 16, 16), generator=drawn, dtype=torch.uint8)
        kept = torch.rand(4, generator=drawn) < 0.5
        answers = by_hand(network, images)
        cells[cell] = TensorDataset(images, torch.where(kept, answers, (answers + 1) % 8))
        right[cell] = float(kept.double().mean())
    known = TensorDataset(images, answers)
    sets = {"imagenet": known, "imagenet-c": cells, "imagenet-o": {"in-distribution": known, "other": cells["fog/1"]}}
    measures = [CorruptionEvaluation(), OodEvaluation()]
    found = evaluate(network, sets, measures, mean=MEAN, std=STD, batch_size=3, **QUIET)
    values = {f"{one.dataset}/{one.metric}": one for one in found.results}
    assert values["imagenet-c/mce"].value == pytest.approx(corruption_error(right))
    assert values["imagenet-c/top1_snow_3"].value == right["snow/3"]
    assert (values["imagenet-c/mce"].count, values["imagenet-o/aupr"].count) == (300, 8)
    assert values["imagenet-o/aupr"].protocol["positive"] == "other"
    assert "imagenet-c/relative_mce" in values


@pytest.mark.parametrize(("anomalies", "kind"), [(True, "of a class that is known"), (False, "an anomaly")])
def test_anomalies_alone_or_none_have_no_curve_and_say_why(network, data, tmp_path, monkeypatch, anomalies, kind):
    """As in a few images of each set, none of which is of the classes that the anomalies are compared with."""
    own = OodDetection.update

    def some(self, scores, is_out):
        own(self, scores[is_out == anomalies], is_out[is_out == anomalies])

    monkeypatch.setattr(OodDetection, "update", some)
    parts = {"imagenet-o": {"in-distribution": data, "other": data}}
    found = evaluate(network, parts, [OodEvaluation()], mean=MEAN, std=STD, **QUIET)
    why = f"none of the images that were tested is {kind}"
    assert {one.metric: one.warnings for one in found.results}["aupr"] == (why,)
    assert all(np.isnan(one.value) and one.interval is None for one in found.results)
    found.save(tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Precision against recall" not in page
    assert why in page


def test_attacks_of_one_norm_are_told_apart(network, data):
    found = evaluate(network, data, [ATTACK, FAB(norm="linf", eps=ATTACK.eps, steps=2)], mean=MEAN, std=STD, **QUIET)
    assert [one.facets.get("attack") for one in found.results] == [None, "fab"]


def test_pictures_of_several_sizes_are_refused(network):
    class Mixed(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, number):
            return Image.new("RGB", (8 + number, 8)), 0

    with pytest.raises(UserError, match=r"shapes \(3, 8, 8\), \(3, 8, 9\): give the data set a transform"):
        evaluate(network, Mixed(), [CleanAccuracy()], **QUIET)
