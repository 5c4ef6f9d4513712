"""Evaluations on what people have already: their own LightningModule, and any loader of images and labels."""

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from lit_robust.attacks import PGD
from lit_robust.callbacks import (
    AdversarialAccuracy,
    CalibrationEvaluation,
    CleanAccuracy,
    CorrectSamples,
    CorruptionEvaluation,
    KeepPredictions,
    OodEvaluation,
    ResultsFile,
    ShapeBiasEvaluation,
)
from lit_robust.callbacks.plain import UNCHECKED
from lit_robust.core.errors import UserError
from lit_robust.core.results import RunResults
from lit_robust.data import (
    CueConflictDataModule,
    EvaluationCrop,
    ImageNetCDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    RobustnessSuite,
)
from lit_robust.metrics import OodDetection, ShapeBias, TopKAccuracy, ood_score
from lit_robust.models import Network
from lit_robust.modules import StandardModule

ATTACK = PGD(norm="linf", eps=3 / 255, steps=3)


class Own(LightningModule):
    """A module as people write it: it knows nothing of this package."""

    def __init__(self, returns="logits"):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(32, 8)
        self.returns = returns

    def forward(self, images):
        return self.head(self.net((images - 0.5) / 0.25))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels.clamp(min=0))
        return {"logits": logits, "loss": loss, "nothing": None, "both": {"loss": loss, "logits": logits}}[self.returns]


def samples(count=21, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(count, 3, 16, 16, generator=drawn), torch.randint(8, (count,), generator=drawn)
    return TensorDataset(images, labels)


def results_of(folder, module, data, *callbacks, **options):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, callbacks=[*callbacks, ResultsFile()], **settings | options)
    trainer.test(module, data, verbose=False)
    return {f"{one.dataset}/{one.metric}": one for one in RunResults.load(folder).results}


def right(module, dataset):
    images, labels = dataset.tensors
    with torch.no_grad():
        return module.eval()(images).argmax(1) == labels


@pytest.mark.parametrize("returns", ["logits", "loss", "nothing", "both"])
def test_accuracy_of_ones_own_module_on_ones_own_loader(tmp_path, returns):
    module, data = Own(returns), samples()
    found = results_of(tmp_path, module, DataLoader(data, batch_size=8), CleanAccuracy(), CalibrationEvaluation())
    top1 = found["imagenet/top1"]
    assert top1.value == right(module, data).double().mean()
    assert (top1.count, top1.protocol["samples"]) == (21, "TensorDataset")
    assert all(one.warnings == () for one in found.values())
    assert "imagenet/ece" in found
    told = RunResults.load(tmp_path)
    assert told.model["network"] == "Own"
    assert len(told.model["weights_sha256"]) == 64


def test_adversarial_accuracy_of_ones_own_module(tmp_path):
    module, (images, labels) = Own(), samples().tensors
    with torch.no_grad():
        labels[:15] = module.eval()(images[:15]).argmax(1)
    data = TensorDataset(images, labels)
    found = results_of(tmp_path, module, DataLoader(data, batch_size=8), AdversarialAccuracy(ATTACK, examples=2))
    broken = ATTACK(module.eval(), images, labels).success | ~right(module, data)
    (result,) = found.values()
    assert result.value == (~broken).double().mean()
    assert 0 < result.value < right(module, data).double().mean()
    assert len(RunResults.load(tmp_path).examples) == 2


def test_an_attack_on_another_forward_than_the_tested_one_is_refused(tmp_path):
    class Outside(Own):
        def test_step(self, batch, batch_idx):
            return self((batch[0] - 0.5) * -40)

    with pytest.raises(UserError, match="forward and test_step of Outside answer otherwise for"):
        results_of(tmp_path, Outside(), DataLoader(samples(), batch_size=21), AdversarialAccuracy(ATTACK))


def test_without_a_forward_no_logits_can_be_asked_for(tmp_path):
    class Silent(LightningModule):
        def test_step(self, batch, batch_idx):
            return None

    with pytest.raises(UserError, match="Silent has no forward"):
        results_of(tmp_path, Silent(), DataLoader(samples()), CleanAccuracy())


def test_unknown_images_are_told_from_known_ones_of_two_loaders(tmp_path):
    module, known, unknown = Own(), samples(), samples(10, seed=3)
    loaders = {"mine": DataLoader(known, batch_size=8), "textures": DataLoader(unknown, batch_size=4)}
    found = results_of(tmp_path, module, loaders, CleanAccuracy("mine"), OodEvaluation("textures", known="mine"))
    metric = OodDetection()
    for data, is_out in ((known, False), (unknown, True)):
        with torch.no_grad():
            scores = ood_score(module.eval()(data.tensors[0]), "max_softmax")
        metric.update(scores, torch.full((len(data),), is_out))
    assert found["textures/aupr"].value == pytest.approx(float(metric.compute()["aupr"]))
    assert found["textures/aupr"].count == 31


def test_ones_own_module_on_our_sets(toy, tmp_path):
    whole = {"evaluation": EvaluationCrop(None, None), "eval_batch_size": 16, "num_workers": 0}
    suite = RobustnessSuite(
        [
            ImageNetDataModule(**whole),
            ImageNetCDataModule(severities=[3], name="imagenet-c-like", eval_batch_size=16, num_workers=0),
            ImageNetODataModule(classes="all", **whole),
            CueConflictDataModule(categories="shards", **whole),
        ],
        root=toy,
    )
    module = Own()
    measures = (
        CleanAccuracy(),
        CorruptionEvaluation("imagenet-c-like", baseline=None),
        OodEvaluation(),
        ShapeBiasEvaluation(examples=0),
    )
    found = results_of(tmp_path, module, suite, *measures)
    loaders = suite.test_dataloader()
    answered = {}
    with torch.no_grad():
        for name, loader in loaders.items():
            batches = [batch.as_float().select(batch.valid) for batch in loader]
            answered[name] = [(module(batch.image), batch) for batch in batches]
    top1 = TopKAccuracy((1,))
    for logits, batch in answered["imagenet"]:
        top1.update(logits, batch.label)
    assert found["imagenet/top1"].value == top1.compute()
    assert found["imagenet/top1"].warnings == ()
    right, groups = (
        torch.cat([part(logits, batch) for logits, batch in answered["imagenet-c-like"]])
        for part in (lambda logits, batch: logits.argmax(1) == batch.label, lambda logits, batch: batch.group)
    )
    assert len(groups.unique()) == 15
    for number in groups.unique().tolist():
        cell = suite.evaluation_sets["imagenet-c-like"].groups[number]
        top1 = found[f"imagenet-c-like/top1_{cell.replace('/', '_')}"]
        assert top1.value == right[groups == number].double().mean()
    bias = ShapeBias(suite.evaluation_sets["cue-conflict"].categories)
    for logits, batch in answered["cue-conflict"]:
        bias.update(logits, batch.label, batch.texture)
    np.testing.assert_equal(found["cue-conflict/shape_bias"].value, float(bias.compute()["shape_bias"]))
    scores = [(ood_score(logits, "max_softmax"), batch.group == 1) for logits, batch in answered["imagenet-o"]]
    metric = OodDetection()
    for score, is_out in scores:
        metric.update(score, is_out)
    assert found["imagenet-o/aupr"].value == float(metric.compute()["aupr"])


def test_a_part_is_marked_and_a_loader_without_length_is_counted(tmp_path):
    data = samples()
    found = results_of(
        tmp_path / "cut", Own(), DataLoader(data, batch_size=8), CleanAccuracy("mine"), limit_test_batches=2
    )
    assert found["mine/top1"].count == 16
    assert found["mine/top1"].protocol["full_count"] == 21

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(data)

    found = results_of(tmp_path / "stream", Own(), DataLoader(Endless(), batch_size=8), CleanAccuracy("mine"))
    assert found["mine/top1"].count == 21
    assert "partial" not in found["mine/top1"].protocol
    assert found["mine/top1"].warnings == (UNCHECKED,)

    cut = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
    found = results_of(tmp_path / "dropped", Own(), cut, CleanAccuracy("mine"))
    assert found["mine/top1"].count == 16
    assert found["mine/top1"].warnings == ("the loader leaves out the last 5 of its data set's 21 samples (drop_last)",)

    drawn = DataLoader(data, batch_size=8, sampler=RandomSampler(data, replacement=True))
    found = results_of(tmp_path / "drawn", Own(), drawn, CleanAccuracy("mine"))
    assert found["mine/top1"].warnings == (UNCHECKED,)

    repeated = DataLoader(data, batch_size=8, sampler=[*range(21), 0, 1])
    found = results_of(tmp_path / "repeated", Own(), repeated, CleanAccuracy("mine"))
    assert found["mine/top1"].warnings == (UNCHECKED, "the loader gave 23 samples of a data set of 21")


def test_loaders_without_names_and_what_needs_numbers_are_refused(tmp_path):
    loader = DataLoader(samples(), batch_size=8)
    with pytest.raises(UserError, match="2 loaders without names.*dict by these names, such as {'imagenet': loader}"):
        results_of(tmp_path, Own(), [loader, loader], CleanAccuracy())
    with pytest.raises(UserError, match="'imagenet-o', but the data have mine"):
        results_of(tmp_path, Own(), {"mine": loader}, OodEvaluation())
    with pytest.raises(UserError, match="a plain loader does not settle"):
        results_of(tmp_path, Own(), loader, CorrectSamples())


def test_our_module_and_kept_predictions_on_a_plain_loader(tmp_path):
    module = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8))
    data = samples()
    found = results_of(tmp_path, module, DataLoader(data, batch_size=8), CleanAccuracy("mine"), KeepPredictions("mine"))
    assert found["mine/top1"].value == right(module, data).double().mean()
    assert found["mine/top1"].warnings == ()


class Odd(CleanAccuracy):
    """A measure whose author took another way than the base's."""

    def __init__(self, gives):
        super().__init__("mine")
        self.gives = gives

    def compute(self):
        return self.gives(self)


@pytest.mark.parametrize(
    ("gives", "sentence"),
    [
        (
            lambda own: [own.share("entropy", 1.7, {})],
            "entropy as 1.7, which is not a share of images: return self.res",
        ),
        (lambda own: [own.share("odd", -0.1, {})], "Odd gives odd as -0.1, which is not a share"),
        (lambda own: 0.5, r"compute of Odd returns 0.5: return a list of self.share\(...\) and self.result"),
        (lambda own: [0.5], r"compute of Odd returns \[0.5\]: return a list"),
    ],
)
def test_a_measure_that_gives_something_else_ends_in_a_sentence(tmp_path, gives, sentence):
    with pytest.raises(UserError, match=sentence):
        results_of(tmp_path, Own(), DataLoader(samples(), batch_size=8), Odd(gives))


def test_a_measure_in_a_unit_of_its_own_and_a_share_that_was_rounded(tmp_path):
    both = Odd(lambda own: [own.result("entropy", 1.7, "nats", {}), own.share("all", 1 + 1e-7, {})])
    found = results_of(tmp_path, Own(), DataLoader(samples(), batch_size=8), both)
    assert (found["mine/entropy"].value, found["mine/entropy"].unit) == (1.7, "nats")
    assert (found["mine/all"].value, found["mine/all"].interval[1]) == (1, 1)


def test_two_measures_of_one_name_are_warned_of(tmp_path, caplog):
    again = Odd(lambda own: [own.share("top1", 0.5, {})])
    results_of(tmp_path, Own(), DataLoader(samples(), batch_size=8), CleanAccuracy("mine"), again)
    assert "Two measures of this run give test/mine/top1: give one of them another name." in caplog.text


def test_several_processes_cannot_share_a_plain_loader(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "world_size", property(lambda self: 2))
    with pytest.raises(UserError, match="each of 2 processes takes, and some would count twice"):
        results_of(tmp_path, Own(), DataLoader(samples(), batch_size=8), CleanAccuracy())
