"""All measures of the papers in one test run on toy data, held to what the network's logits say directly."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from naming import read_checked
from pytorch_lightning import Trainer
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score

from lit_robust.callbacks import (
    CalibrationEvaluation,
    ClassSubsetAccuracy,
    CleanAccuracy,
    CorrectSamples,
    CorruptionEvaluation,
    ErrorConsistencyEvaluation,
    OodEvaluation,
    ResultsFile,
    SampleRestriction,
)
from lit_robust.core.errors import DataError, UserError
from lit_robust.data import (
    CueConflictDataModule,
    EvaluationCrop,
    ImageNetADataModule,
    ImageNetCDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    RobustnessSuite,
)
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule

SMALL = {"eval_batch_size": 16, "num_workers": 0}
WHOLE = {"evaluation": EvaluationCrop(resize=None, crop=None), **SMALL}
SEVERITY = 3  # The toy fixture's only one.


class Remembering(StandardModule):
    """A network that is familiar with dark images."""

    def familiarity(self, images):
        return -images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(3)
    return Remembering(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())


@pytest.fixture(scope="module")
def logits(toy, module):
    """Name of each set to its logits and columns, without any callback."""
    suite = data(toy)
    suite.setup("test")
    module.eval()
    found = {}
    for name, loader in suite.test_dataloader().items():
        batches = [batch.select(batch.valid).as_float() for batch in loader]
        with torch.no_grad():
            answers = torch.cat([module(batch.image) for batch in batches])
        columns = {
            field: torch.cat([getattr(batch, field) for batch in batches])
            for field in ("image", "label", "index", "group")
            if getattr(batches[0], field) is not None
        }
        found[name] = {"logits": answers, **columns}
    return found


def data(toy):
    return RobustnessSuite(
        [
            ImageNetDataModule(**WHOLE),
            ImageNetCDataModule(severities=[SEVERITY], name="imagenet-c-like", **SMALL),
            ImageNetADataModule(classes="all", **WHOLE),
            ImageNetODataModule(classes="all", **WHOLE),
            CueConflictDataModule(categories="shards", **WHOLE),
        ],
        root=toy,
    )


def run(toy, folder, module, *callbacks, **settings):
    """Test with some callbacks, and return the results by their keys."""
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, ResultsFile()],
        **settings,
    )
    trainer.test(module, data(toy), verbose=False)
    return {result.key: result for result in read_checked(folder).results}


@pytest.fixture(scope="module")
def decisions(toy, logits, tmp_path_factory):
    """Decisions of an observer who is right on every other figure, and of one who always says the same."""
    suite = data(toy)
    suite.setup("test")
    member = suite.members[-1]
    keys = [member.samples.table.key(number) for number in range(len(member.samples))]
    names = list(member.category_classes)
    labels = member.samples.table.label.tolist()
    right = [names[label] if number % 2 else "na" for number, label in enumerate(labels)]
    rows = [
        *(("subject-01", said, key) for said, key in zip(right, keys, strict=True)),
        *(("subject-02", names[0], key) for key in keys[:20]),
        ("elsewhere", names[0], "nowhere9-nothing9"),
    ]  # fmt: skip
    file = tmp_path_factory.mktemp("decisions") / "decisions.csv"
    lines = [f"{who},1,1,NaN,{said},x,0,0001_trial_{key.rsplit('/', 1)[-1]}.png" for who, said, key in rows]
    file.write_text("\n".join(["subj,session,trial,rt,object_response,category,condition,imagename", *lines]))
    return file


@pytest.fixture(scope="module")
def results(toy, module, decisions, tmp_path_factory):
    return run(
        toy,
        tmp_path_factory.mktemp("run"),
        module,
        CleanAccuracy(),
        CleanAccuracy("imagenet-a"),
        CorruptionEvaluation("imagenet-c-like", baseline=None),
        OodEvaluation(scores=["max_softmax", "max_logit", "energy", "memory_similarity"]),
        CalibrationEvaluation(),
        CalibrationEvaluation("imagenet-a"),
        ErrorConsistencyEvaluation(decisions),
    )


def value(results, key):
    return results[f"test/{key}"].value


def test_corruptions(results, logits):
    found = logits["imagenet-c-like"]
    right = (found["logits"].argmax(1) == found["label"]).double()
    assert value(results, "imagenet-c-like/mean_accuracy_of_tested_cells") == pytest.approx(float(right.mean()))
    fog = 5 * 9 + SEVERITY - 1
    result = results[f"test/imagenet-c-like/top1_fog_{SEVERITY}"]
    assert result.value == pytest.approx(float(right[found["group"] == fog].mean()))
    assert result.count == 41
    assert results["test/imagenet-c-like/mean_accuracy_of_tested_cells"].count == 15 * 41
    assert not any("mce" in key or "/ce_" in key for key in results)


def test_out_of_distribution(results, logits):
    found = logits["imagenet-o"]
    strange = found["group"] == 1
    scores = {
        "": 1 - found["logits"].double().softmax(1).max(1)[0],
        "_max_logit": -found["logits"].max(1)[0],
        "_energy": -found["logits"].double().logsumexp(1),
        "_memory_similarity": found["image"].mean((1, 2, 3)),
    }
    for end, score in scores.items():
        # A batch of another size may round logits otherwise, and two scores may change places.
        assert value(results, f"imagenet-o/aupr{end}") == pytest.approx(
            average_precision_score(strange, score), abs=0.02
        )
        assert value(results, f"imagenet-o/auroc{end}") == pytest.approx(roc_auc_score(strange, score), abs=0.005)
        assert 0 <= value(results, f"imagenet-o/fpr95{end}") <= 1
    protocol = results["test/imagenet-o/aupr"].protocol
    assert (protocol["positives"], protocol["negatives"]) == (int(strange.sum()), int((~strange).sum()))
    assert protocol["precision_recall"][-1][0] == 1
    assert results["test/imagenet-o/auroc"].count == len(strange)


def test_calibration(results, logits):
    confidence, answer = logits["imagenet"]["logits"].softmax(1).max(1)
    right = answer == logits["imagenet"]["label"]
    # 41 images are one bin.
    gap = abs(float(confidence.mean() - right.double().mean()))
    assert value(results, "imagenet/rms_calibration_error") == pytest.approx(gap, abs=1e-6)
    assert np.isnan(value(results, "imagenet/rms_calibration_error_published"))
    assert 0 <= value(results, "imagenet-a/ece") <= 1


def test_every_fraction_has_an_interval_that_says_how(results, logits):
    told = {result.protocol.get("interval") for result in results.values()}
    assert told - {None} == {"Wilson", "bootstrap, 1000 draws"}
    for result in results.values():
        if result.unit != "fraction" or np.isnan(result.value) or result.metric == "error_consistency_humans":
            continue
        low, high = result.interval
        assert low <= result.value <= high, result.key
        assert low < high or result.value in (0, 1), result.key
    top1 = results["test/imagenet/top1"]
    expected = binomtest(round(top1.value * 41), 41).proportion_ci(method="wilson")
    assert top1.interval == pytest.approx((expected.low, expected.high))
    # One figure under 15 corruptions is one figure.
    found = logits["imagenet-c-like"]
    right = (found["logits"].argmax(1) == found["label"]).double().reshape(15, 41)
    error = float(right.mean(0).std()) / 41**0.5
    low, high = results["test/imagenet-c-like/mean_accuracy_of_tested_cells"].interval
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_error_consistency(toy, results, logits):
    found = logits["cue-conflict"]
    # The toy's categories are one class each, in alphabetical order.
    suite = data(toy)
    suite.setup("test")
    order = [classes[0] for classes in suite.members[-1].category_classes.values()]
    right = (found["logits"][:, order].argmax(1) == found["label"]).numpy()
    every_other = found["index"].numpy() % 2 == 1
    expected = cohen_kappa_score(right, every_other)
    result = results["test/cue-conflict/error_consistency_subject_01"]
    assert (result.value, result.count) == (pytest.approx(expected, abs=1e-12), len(right))
    assert result.protocol["agreement"] == pytest.approx((right == every_other).mean())
    assert results["test/cue-conflict/error_consistency_subject_02"].count == 20
    assert "test/cue-conflict/error_consistency_elsewhere" not in results
    people = [value(results, f"cue-conflict/error_consistency_subject_0{n}") for n in (1, 2)]
    assert value(results, "cue-conflict/error_consistency_humans") == pytest.approx(np.mean(people), nan_ok=True)


def test_restriction_to_what_two_networks_get_right(toy, module, logits, tmp_path):
    torch.manual_seed(8)
    other = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
    for name, network in (("first", module), ("second", other)):
        found = run(toy, tmp_path / name, network, CorrectSamples("imagenet-c-like"))
        (result,) = found.values()
        content = json.loads((tmp_path / name / "correct-imagenet-c-like.json").read_text())
        assert (result.value, content["count"]) == (len(content["correct"]), 15 * 41)
    columns = logits["imagenet-c-like"]
    first = set(columns["index"][columns["logits"].argmax(1) == columns["label"]].tolist())
    files = [tmp_path / name / "correct-imagenet-c-like.json" for name in ("first", "second")]
    assert set(json.loads(files[0].read_text())["correct"]) == first
    both = first & set(json.loads(files[1].read_text())["correct"])
    restriction = SampleRestriction(files, "imagenet-c-like")
    evaluations = [CleanAccuracy("imagenet-c-like"), CleanAccuracy(), CorrectSamples("imagenet-c-like"), restriction]
    found = run(toy, tmp_path / "restricted", module, *evaluations)
    result = found["test/imagenet-c-like/top1"]
    assert (result.value, result.count) == (1, len(both))
    assert result.protocol["restricted"].startswith(f"{len(both)} of 615 images, those in {files[0]}, {files[1]}")
    assert found["test/imagenet/top1"].count == 41
    # A list that was itself written under a restriction numbers samples of the whole set.
    written = json.loads((tmp_path / "restricted" / "correct-imagenet-c-like.json").read_text())
    assert (written["count"], written["correct"]) == (615, sorted(both))


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (lambda: CorruptionEvaluation("imagenet-c-like"), "has 8 classes, and AlexNet's errors"),
        (lambda: CorruptionEvaluation("imagenet", baseline=None), "imagenet has no corruptions"),
        (
            lambda: CorruptionEvaluation("imagenet-c-like", None, "imagnet"),
            "CorruptionEvaluation on imagenet-c-like has errors relative to 'imagnet', but the data have imagenet",
        ),
        (lambda: OodEvaluation("imagenet"), "no images out of distribution"),
        (lambda: ClassSubsetAccuracy(), "imagenet has 8 classes"),
        (lambda: CalibrationEvaluation("cue-conflict"), "that set has categories"),
        (lambda: CleanAccuracy("imagenet-o"), "label -1, which is none of the network's 8 classes"),
        (lambda: ErrorConsistencyEvaluation("nowhere.csv"), "nowhere.csv cannot be read"),
        (lambda: SampleRestriction(["nowhere.json"]), "nowhere.json is not a list of samples"),
        (lambda: SampleRestriction(["x"], "imagenet-b"), "restricts 'imagenet-b', but the data have imagenet"),
    ],
)
def test_mistakes_are_told_in_a_sentence(callback, words, toy, module, tmp_path):
    with pytest.raises(UserError, match=words):
        run(toy, tmp_path, module, CleanAccuracy("imagenet-a"), callback())


def test_scores_and_memories_that_are_not_there(toy, tmp_path):
    with pytest.raises(UserError, match="scores is \\['entropy'\\]"):
        OodEvaluation(scores=["entropy"])
    plain = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
    with pytest.raises(UserError, match="StandardModule has no memory"):
        run(toy, tmp_path, plain, OodEvaluation(scores=["memory_similarity"]))


def test_logits_that_are_no_numbers_are_refused_by_the_samples_name(toy, tmp_path):
    broken = StandardModule(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
    torch.nn.init.constant_(broken.model.network.fc.bias, float("nan"))
    with pytest.raises(DataError, match=r"not finite for sample 0 \(\w+/000000\) of imagenet: check its weights"):
        run(toy, tmp_path, broken, CleanAccuracy())


def test_a_partial_list_is_not_written(toy, module, tmp_path, caplog):
    found = run(toy, tmp_path, module, CorrectSamples(), limit_test_batches=1)
    assert "No list of right samples of imagenet is written, as only 16 of 41 were evaluated." in caplog.messages
    assert not list(tmp_path.glob("correct-*"))
    assert found["test/imagenet/correct_samples"].protocol["partial"]


class Tail:
    """All batches of a loader but the first."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return islice(self.loader, 1, None)


class Losing(ImageNetDataModule):
    """Images whose first batch is lost on the way."""

    def test_dataloader(self):
        return {name: Tail(loader) for name, loader in super().test_dataloader().items()}


@pytest.mark.parametrize(("limit", "asked"), [(None, 41), (20, 20), (99, 41)])
def test_lost_samples_are_told(toy, module, limit, asked, tmp_path):
    lost = Losing(root=toy, **WHOLE)
    lost.limit = limit
    measures = [CleanAccuracy(), ResultsFile()]
    trainer = Trainer(default_root_dir=tmp_path, callbacks=measures, logger=False, accelerator="cpu")
    with pytest.raises(DataError, match=rf"{asked - 16} samples of imagenet were evaluated where {asked} were asked"):
        trainer.test(module, lost, verbose=False)
    assert not (tmp_path / "results.json").exists()
