"""Lists of the images that networks get right, applied to the same and to other shards of tiny images."""

import json

import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from tiny_sets import SMALL, WHOLE, write

from lit_robust.callbacks import (
    CleanAccuracy,
    CorrectSamples,
    CorruptionEvaluation,
    KeepPredictions,
    ResultsFile,
    SampleRestriction,
)
from lit_robust.callbacks.predictions import read_kept
from lit_robust.callbacks.restriction import read_selection, samples_digest
from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.results import RunResults
from lit_robust.data import (
    DerivedDataModule,
    ImageNetCDataModule,
    ImageNetCLikeDataModule,
    ImageNetDataModule,
    RobustnessSuite,
    StimulusDataModule,
    StylizedImageNetDataModule,
)
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.packing.derivation import Derivation
from lit_robust.data.packing.deriving import derive
from lit_robust.data.packing.silhouettes import MaskSilhouettes
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule
from lit_robust.shards import decode_rgb

LABELS = [3, 0, 5, 3, 1, 0, 7]
KEYS = [f"n{label:08d}/ILSVRC2012_val_{place:08d}" for place, label in enumerate(LABELS)]
# Which image stands where, in shards that others wrote.
ORDERS = {"fog/1": [6, 2, 0, 1, 5, 4, 3], "fog/2": [0, 1, 2, 3, 4, 5, 6], "snow/5": [5, 6, 4, 3, 0, 2, 1]}
STYLIZED = [4, 5, 6, 0, 1, 3, 2]
RIGHT = {"first": [0, 2, 3, 5, 6], "second": [0, 1, 2, 6]}
BOTH = [0, 2, 6]


class Scripted(StandardModule):
    """Is right about some images of the first set, and always says class 3 of others'."""

    def __init__(self, right=()):
        super().__init__(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
        self.right = torch.tensor(right, dtype=torch.int64)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx:
            return torch.eye(8)[torch.full_like(batch.label, 3)]
        return torch.eye(8)[torch.where(torch.isin(batch.index, self.right), batch.label, (batch.label + 1) % 8)]


def write_cell(root, cell, order):
    labels, keys = [LABELS[place] for place in order], [KEYS[place] for place in order]
    write(root / "imagenet-c" / cell, "val", labels, num_classes=8, keys=keys)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenets")
    write(root / "imagenet", "val", LABELS, num_classes=8, keys=KEYS)
    for cell, order in ORDERS.items():
        write_cell(root, cell, order)
    # Other folders, which say nothing of the class.
    labels, keys = [LABELS[place] for place in STYLIZED], [f"styled/{KEYS[place][10:]}" for place in STYLIZED]
    write(root / "stylized-imagenet", "val", labels, num_classes=8, keys=keys)
    return root


def clean():
    return ImageNetDataModule(evaluation=WHOLE, **SMALL)


def corrupted(corruptions=("fog",), severities=(1, 2)):
    return ImageNetCDataModule(corruptions=corruptions, severities=severities, **SMALL)


def run(folder, data, module, *callbacks, **settings):
    """Test, and return the results by their keys."""
    trainer = Trainer(
        **{"devices": 1, **settings}, default_root_dir=folder, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks, ResultsFile()],
    )  # fmt: skip
    trainer.test(module, data, verbose=False)
    return {result.key: result for result in RunResults.load(folder).results}


@pytest.fixture(scope="module")
def lists(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    for name, right in RIGHT.items():
        run(folder / name, RobustnessSuite([clean()], root), Scripted(right), CorrectSamples())
    return [folder / name / "correct-imagenet.json" for name in RIGHT]


def test_a_list_has_numbers_names_and_labels(lists):
    content = json.loads(lists[0].read_text())
    assert content["correct"] == RIGHT["first"]
    assert content["names"] == [KEYS[place] for place in RIGHT["first"]]
    assert content["labels"] == [LABELS[place] for place in RIGHT["first"]]


def test_the_same_images_are_found_in_other_shards(root, lists, tmp_path):
    data = RobustnessSuite([clean(), corrupted(), StylizedImageNetDataModule(evaluation=WHOLE, **SMALL)], root)
    names = ("imagenet", "imagenet-c", "stylized-imagenet")
    callbacks = [SampleRestriction(lists, name) for name in names] + [KeepPredictions(name) for name in names]
    callbacks += [CleanAccuracy(), CleanAccuracy("stylized-imagenet"), CorruptionEvaluation(baseline=None)]
    found = run(tmp_path, data, Scripted(BOTH), *callbacks)
    kept = {each.described.name: each.index.tolist() for each in read_kept(tmp_path)}
    assert kept["imagenet"] == BOTH
    assert kept["stylized-imagenet"] == [place for place, image in enumerate(STYLIZED) if image in BOTH]
    # The cells stand one after another.
    cells = ORDERS["fog/1"] + ORDERS["fog/2"]
    assert kept["imagenet-c"] == [place for place, image in enumerate(cells) if image in BOTH]
    threes = sum(LABELS[image] == 3 for image in BOTH) / len(BOTH)
    for key in ("stylized-imagenet/top1", "imagenet-c/top1_fog_1", "imagenet-c/top1_fog_2"):
        assert (found[f"test/{key}"].value, found[f"test/{key}"].count) == (threes, len(BOTH))
    assert found["test/imagenet/top1"].value == 1
    told = {name: found[key].protocol["restricted"] for name, key in (
        ("imagenet", "test/imagenet/top1"), ("imagenet-c", "test/imagenet-c/top1_fog_1"))}  # fmt: skip
    assert told["imagenet"] == f"3 of 7 images, those in {lists[0]}, {lists[1]}, found by number"
    assert told["imagenet-c"] == f"6 of 14 images, those in {lists[0]}, {lists[1]}, found by name"


def test_images_corrupted_as_they_are_loaded(root, lists, tmp_path):
    # The cells of an image stand one after another. 32 px, for no corruption takes fewer.
    write(tmp_path / "imagenet", "val", LABELS[::-1], num_classes=8, keys=KEYS[::-1], size=32)
    like = ImageNetCLikeDataModule(
        root=tmp_path, corruptions=["contrast"], severities=[1, 2, 3], crop=WHOLE, **SMALL
    )  # fmt: skip
    data, name = RobustnessSuite([like]), "imagenet-c-like"
    run(tmp_path, data, Scripted(), SampleRestriction(lists[:1], name), KeepPredictions(name))
    (kept,) = read_kept(tmp_path)
    images = [len(LABELS) - 1 - number // 3 for number in kept.index.tolist()]
    assert images == sorted(3 * RIGHT["first"], reverse=True)


def test_two_ranks_keep_the_samples_of_one(root, lists, tmp_path):
    if torch.cuda.is_initialized():
        pytest.skip("a process that has used a GPU cannot be copied")
    data = RobustnessSuite([clean(), corrupted()], root)
    callbacks = [SampleRestriction(lists, "imagenet-c"), CorrectSamples(), CorruptionEvaluation(baseline=None)]
    two = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    found = run(tmp_path, data, Scripted(RIGHT["second"]), *callbacks, **two)
    written, first = (json.loads(file.read_text()) for file in (tmp_path / "correct-imagenet.json", lists[1]))
    # The layers beneath the script are drawn anew.
    assert written | {"weights_sha256": ""} == first | {"weights_sha256": ""}
    assert found["test/imagenet-c/top1_fog_1"].count == len(BOTH)
    assert found["test/imagenet-c/mean_accuracy_of_tested_cells"].count == 2 * len(BOTH)


def test_a_limited_test_gives_its_results_without_a_list(root, tmp_path, caplog):
    data = RobustnessSuite([clean()], root)
    data.limit = 4
    found = run(tmp_path, data, Scripted([0]), CorrectSamples(), CleanAccuracy())
    assert found["test/imagenet/top1"].count == 4
    assert "No list of right samples of imagenet is written, as only 4 of 7 were evaluated." in caplog.messages
    assert not list(tmp_path.glob("correct-*"))


def test_a_list_is_of_the_network_that_was_tested_last(root, tmp_path):
    """Another network's list does not stay next to results of a part of the set, which has none."""
    data, file = RobustnessSuite([clean()], root), tmp_path / "correct-imagenet.json"
    run(tmp_path, data, Scripted([0, 2]), CorrectSamples())
    model = RunResults.load(tmp_path).model
    assert json.loads(file.read_text())["weights_sha256"] == model["weights_sha256"]
    with pytest.raises(UserError, match=r"CorrectSamples on imagenet would replace .*correct-imagenet\.json, which a"):
        run(tmp_path, data, Scripted([0]), SampleRestriction([file]), CorrectSamples())
    assert file.exists()
    data.limit = 4
    run(tmp_path, data, Scripted([0]), CorrectSamples())
    assert not file.exists()


def changed(lists, folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "changed.json"
    file.write_text(json.dumps(json.loads(lists[0].read_text()) | changes))
    return file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ["a/x"] * 5}, "gives 5 images 1 names, so they cannot be found in imagenet-c"),
        ({"names": [*KEYS[:4], "n0/gone"]}, "has the listed image gone 0 times, not once in each of the 2 cells"),
        ({"names": [], "labels": []}, "another set of 7, not of the 14 of imagenet-c, and no names to find them by"),
        ({"names": [KEYS[place] for place in (1, 2, 3, 5, 6)]}, "label 0, and the listed image of its name 3"),
    ],
)
def test_lists_that_do_not_fit_are_refused(changes, words, root, lists, tmp_path):
    restriction = SampleRestriction([changed(lists, tmp_path, **changes)], "imagenet-c")
    with pytest.raises(UserError, match=words):
        run(
            tmp_path, RobustnessSuite([corrupted()], root), Scripted(), restriction, CorruptionEvaluation(baseline=None)
        )


def test_a_name_that_a_set_has_twice_is_refused(lists, tmp_path):
    write(tmp_path / "imagenet", "val", [3, 3, 5, 3, 0, 7], num_classes=8, keys=[
        KEYS[0], f"other/{KEYS[0][10:]}", KEYS[2], KEYS[3], KEYS[5], KEYS[6]])  # fmt: skip
    with pytest.raises(DataError, match="the listed image ILSVRC2012_val_00000000 2 times, not once:"):
        run(tmp_path, RobustnessSuite([clean()], tmp_path), Scripted(), SampleRestriction(lists[:1]), CleanAccuracy())


def test_a_derived_set_may_lack_images_that_could_not_be_made(root, lists, tmp_path):
    source = open_table(root / "imagenet", "val", Reading())
    side = WHOLE(decode_rgb(source.table.readers[0].image_bytes(0), "")).shape[-1]
    for image in (0, 2, 3):
        Image.new("L", (side, side), 1).save(tmp_path / f"{KEYS[image][10:]}.png")
    stimulus = MaskSilhouettes(masks=tmp_path)
    folder = tmp_path / "silhouettes"
    derive([Derivation(source=source, folder=folder, split="val", stimulus=stimulus, crop=WHOLE)], workers=0)
    written = DerivedDataModule(tmp_path, name="silhouettes", **SMALL)
    loaded = StimulusDataModule(root, WHOLE, stimulus=stimulus, name="silhouettes", **SMALL)
    for number, data in enumerate((written, loaded)):
        restriction = SampleRestriction(lists, "silhouettes")
        found = run(tmp_path / str(number), data, Scripted(), restriction, CleanAccuracy("silhouettes"))
        result = found["test/silhouettes/top1"]
        # Of 0, 2 and 6, which both get right, 6 has no mask.
        assert result.count == 2
        assert "2 of 3 images" in result.protocol["restricted"]


def described(**protocol):
    return EvaluationSet("imagenet", 7, {"split": "val", "shards_sha256": "a", **protocol})


def test_lists_of_the_first_form_and_defective_ones(tmp_path):
    digest = samples_digest(described(resize=256))
    assert digest == samples_digest(described(resize=232))
    assert digest != samples_digest(described(restricted="3 of 7"))
    file = tmp_path / "correct-imagenet.json"

    def write_list(**changes):
        content = {"schema": 1, "dataset": "imagenet", "samples_sha256": digest, "count": 7, "correct": [1, 4]}
        file.write_text(json.dumps(content | changes))
        return file

    restriction = SampleRestriction([write_list()])
    assert restriction.describe(described(), None).count == 2
    with pytest.raises(UserError, match="another set of 7, not of the 7 of imagenet"):
        restriction.describe(described(shards_sha256="b"), None)
    for changes in ({"correct": [4, 1]}, {"correct": [1, 1]}, {"correct": [7]}, {"correct": [-1]}):
        with pytest.raises(UserError, match="lists a sample twice, or one that is none of 7"):
            read_selection(write_list(**changes))
    for changes in ({"schema": 3}, {"correct": None}, {"names": ["a"], "labels": [1]}, {"names": ["a", "b"]}):
        with pytest.raises(UserError, match="is not a list of samples"):
            read_selection(write_list(**changes))
    with pytest.raises(UserError, match="have none in common"):
        _ = SampleRestriction([write_list(correct=[])]).selection
    with pytest.raises(UserError, match="has no files"):
        SampleRestriction([])
