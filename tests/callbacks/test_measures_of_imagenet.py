"""The measures that need ImageNet's classes, on tiny images with its labels and a network of 1,000 logits."""

import shutil

import pytest
import torch
from naming import read_checked
from pytorch_lightning import Trainer
from tiny_sets import SMALL, write
from tiny_sets import WHOLE as WHOLE_IMAGES

from lit_robust.callbacks import (
    ClassSubsetAccuracy,
    CleanAccuracy,
    CorrectSamples,
    CorruptionEvaluation,
    OodEvaluation,
    ResultsFile,
    SampleRestriction,
)
from lit_robust.core.results import RunResults
from lit_robust.data import (
    ImageNetADataModule,
    ImageNetCDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    RobustnessSuite,
)
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule
from lit_robust.reference import imagenet_subset
from lit_robust.reference.corruption_baselines import benchmark_corruptions, corruption_baseline
from lit_robust.report.protocol import facts, limits

WHOLE = {"evaluation": WHOLE_IMAGES, **SMALL}
IN_A, IN_O = imagenet_subset("imagenet-a"), imagenet_subset("imagenet-o")
LABELS = [0, 1, IN_A[3], IN_A[9], IN_O[5], 5, 6]


class Scripted(StandardModule):
    """Answers by an image's red channel, which is its place in its set."""

    def __init__(self):
        super().__init__(Network("lit_robust/resnet_tiny", num_classes=1000), Optimisation())
        self.answers = {}

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        places = (batch.image[:, 0, 0, 0] * 255).round().long()
        return self.answers[dataloader_idx][places]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenets")
    write(root / "imagenet", "val", LABELS)
    for name in benchmark_corruptions():
        for severity in range(1, 6):
            write(root / f"imagenet-c/{name}/{severity}", "val", LABELS[:4])
    write(root / "imagenet-a", "test", [IN_A[0], IN_A[0], IN_A[7]])
    write(root / "imagenet-o", "test", [0, 1, 2])
    return root


def suite(root, *members):
    return RobustnessSuite(members or [ImageNetDataModule(**WHOLE)], root=root)


def run(folder, data, answers, *callbacks):
    """Test, and return the results by their keys."""
    module = Scripted()
    module.answers = dict(enumerate(answers))
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, ResultsFile()],
    )
    trainer.test(module, data, verbose=False)
    return {result.key: result for result in read_checked(folder).results}


def saying(classes):
    """Return logits of a network that is sure of these classes."""
    return 10 * torch.eye(1000)[torch.tensor(classes)]


def test_corruption_errors_with_the_clean_error_of_the_same_run(root, tmp_path):
    clean = [0, 1, IN_A[3], IN_A[9], 999, 999, 999]  # 4 of 7 right
    corrupted = [0, 999, 999, 999]  # 1 of 4 right
    members = ImageNetCDataModule(eval_batch_size=7, num_workers=0), ImageNetDataModule(**WHOLE)
    found = run(tmp_path, suite(root, *members), [saying(corrupted), saying(clean)], CorruptionEvaluation())
    baseline = corruption_baseline("imagenet-c")
    mean = sum(0.75 / unit for name, unit in baseline.mean_errors.items() if name in baseline.errors) / 15
    relative = sum(
        (0.75 - 3 / 7) / (unit - 0.4348) for name, unit in baseline.mean_errors.items() if name in baseline.errors
    )
    mce, relative_mce = found["test/imagenet-c/mce"], found["test/imagenet-c/relative_mce"]
    assert (mce.value, mce.count) == (pytest.approx(mean), 300)
    assert relative_mce.value == pytest.approx(relative / 15)
    assert mce.protocol["baseline"] == {"name": "imagenet-c", "network": "AlexNet", "images": 50_000}
    assert relative_mce.protocol["clean"] == {"dataset": "imagenet", "top1": 4 / 7, "images": 7, "of": 7}
    assert found["test/imagenet-c/ce_fog"].count == found["test/imagenet-c/top1_fog"].count == 20
    assert found["test/imagenet-c/top1_jpeg_compression_5"].count == 4
    assert found["test/imagenet-c/top1_fog_2"].value == found["test/imagenet-c/mean_accuracy"].value == 0.25
    # mce, relative and mean; of each corruption its error, accuracy and five severities.
    assert len(found) == 3 + 15 * 7


def test_extra_corruptions_change_nothing_of_the_benchmarks_values(root, tmp_path):
    """With them on disk a mean is the same value, measured alike, as without them."""
    more = tmp_path / "more"
    shutil.copytree(root / "imagenet-c", more / "imagenet-c")
    for severity in range(1, 6):
        write(more / f"imagenet-c/spatter/{severity}", "val", LABELS[:4])
    answers = [saying([0, 999, 999, 999])]

    def found(folder, corruptions):
        member = ImageNetCDataModule(corruptions=corruptions, eval_batch_size=7, num_workers=0)
        return run(tmp_path, suite(folder, member), answers, CorruptionEvaluation())

    fifteen, every = found(root, benchmark_corruptions()), found(more, None)
    for key, result in fifteen.items():
        assert (every[key].value, every[key].count) == (result.value, result.count)
        assert facts(every[key]) == facts(result), key
    extra = every["test/imagenet-c/mean_accuracy_of_extra_corruptions"]
    assert (extra.value, extra.count) == (0.25, 20)
    assert extra.protocol["cells"] == [f"spatter/{severity}" for severity in range(1, 6)]
    assert every["test/imagenet-c/top1_spatter_1"].protocol["shards_sha256"] == extra.protocol["shards_sha256"]
    assert extra.protocol["shards_sha256"] != every["test/imagenet-c/mce"].protocol["shards_sha256"]


def test_cells_that_are_not_there_are_told_of_a_mean(root, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(root / "imagenet-c", cut / "imagenet-c")
    shutil.rmtree(cut / "imagenet-c/fog/2")
    member = ImageNetCDataModule(corruptions=None, severities=None, eval_batch_size=7, num_workers=0)
    found = run(tmp_path, suite(cut, member), [saying([0, 999, 999, 999])], CorruptionEvaluation(baseline=None))
    mean = found["test/imagenet-c/mean_accuracy_of_tested_cells"]
    assert limits(mean) == ["1 of 75 cells are not there, the first is fog/2"]
    assert (mean.value, mean.count) == (0.25, 74 * 4)
    assert limits(found["test/imagenet-c/top1_fog_1"]) == []


def test_a_clean_set_that_is_restricted_alone_gives_nothing_relative(root, tmp_path):
    clean, corrupted = saying([0, 1, IN_A[3], IN_A[9], 999, 999, 999]), saying([0, 999, 999, 999])
    run(tmp_path, suite(root), [clean], CorrectSamples())
    members = ImageNetCDataModule(eval_batch_size=7, num_workers=0), ImageNetDataModule(**WHOLE)
    restriction = SampleRestriction([tmp_path / "correct-imagenet.json"])
    with pytest.warns(UserWarning, match="relative_mce is left out, as only one of imagenet-c and imagenet is"):
        found = run(tmp_path, suite(root, *members), [corrupted, clean], CorruptionEvaluation(), restriction)
    assert "test/imagenet-c/relative_mce" not in found
    assert "test/imagenet-c/mce" in found


def test_a_baseline_of_another_number_of_images_is_told(root, tmp_path):
    members = ImageNetCDataModule(eval_batch_size=7, num_workers=0), ImageNetDataModule(**WHOLE)
    answers = [saying([0, 999, 999, 999]), saying([0, 1, 2, 3, 4, 5, 6])]
    with pytest.warns(UserWarning, match="the baseline imagenet-c is of 50000 images a cell, and the set has 4"):
        found = run(tmp_path, suite(root, *members), answers, CorruptionEvaluation())
    told = ("the baseline imagenet-c is of 50000 images a cell, and the set has 4",)
    assert [found[f"test/imagenet-c/{name}"].warnings for name in ("mce", "ce_fog", "top1_fog")] == [told, told, ()]


def test_without_the_clean_set_nothing_is_relative(root, tmp_path):
    members = ImageNetCDataModule(eval_batch_size=7, num_workers=0, severities=[1, 2])
    found = run(
        tmp_path, suite(root, members), [saying([0, 1, 2, 3])], CorruptionEvaluation(baseline="robustbench-5000")
    )
    assert set(found) == {
        "test/imagenet-c/mean_accuracy_of_tested_cells",
        *(f"test/imagenet-c/top1_{name}_{severity}" for name in benchmark_corruptions() for severity in (1, 2)),
    }


def test_imagenet_a_decides_among_its_classes(root, tmp_path):
    logits = saying([IN_A[0], 0, 0])
    logits[1, IN_A[0]] = 5.0  # right among the 200, and wrong among all
    logits[2, IN_A[1]] = 5.0
    members = ImageNetADataModule(**WHOLE), ImageNetDataModule(**WHOLE)
    said = [0, 1, IN_A[3], 0, IN_A[0], 5, 6]
    found = run(
        tmp_path, suite(root, *members), [logits, saying(said)], CleanAccuracy("imagenet-a"), ClassSubsetAccuracy(),
        ClassSubsetAccuracy(subset="imagenet-o"),
    )  # fmt: skip
    assert found["test/imagenet-a/top1"].value == pytest.approx(2 / 3)
    assert found["test/imagenet-a/top1"].protocol["decided_among"] == 200
    assert found["test/imagenet-a/top1_all_classes"].value == pytest.approx(1 / 3)
    # An answer outside the 200 leaves all of these equal, of which the lowest, class 6, is taken: wrongly here.
    inside = [label == answer for label, answer in zip(LABELS, said, strict=True) if label in IN_A]
    matched = found["test/imagenet/top1_imagenet_a_classes"]
    assert (sum(inside), len(inside)) == (2, 4)
    assert (matched.value, matched.count) == (0.5, 4)
    assert found["test/imagenet/top1_imagenet_o_classes"].count == sum(label in IN_O for label in LABELS)


def test_imagenet_o_scores_among_its_classes(root, tmp_path):
    known = [label for label in LABELS if label in IN_O]
    # By its own 200 classes the network is unsure of strangers; by class 0, none of those, it is sure of all.
    strangers = 10 * torch.eye(1000)[[0, 0, 0]]
    data = suite(root, ImageNetODataModule(**WHOLE))
    data.setup("test")
    (loader,) = data.test_dataloader().values()
    groups = torch.cat([batch.group[batch.valid] for batch in loader])
    assert groups.tolist() == [0] * len(known) + [1] * 3
    sure = saying([0] * 7)
    for place, label in enumerate(LABELS):
        sure[place, label] = 4.0

    class Both(Scripted):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            places = (batch.image[:, 0, 0, 0] * 255).round().long()
            return torch.where(batch.group[:, None] == 1, strangers[places.clamp(max=2)], sure[places])

    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[OodEvaluation(), ResultsFile()],
    )  # fmt: skip
    trainer.test(Both(), data, verbose=False)
    found = {result.metric: result for result in RunResults.load(tmp_path).results}
    assert (found["aupr"].value, found["auroc"].value, found["fpr95"].value) == (1, 1, 0)
    assert found["aupr"].protocol["decided_among"] == 200
