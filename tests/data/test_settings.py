"""Settings that no data module can take: each ends in a sentence that names the setting."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
from pytorch_lightning.trainer.states import TrainerFn

from lit_robust.core.errors import UserError
from lit_robust.data import (
    CueConflictDataModule,
    EvaluationCrop,
    ImageFolderDataModule,
    ImageNetADataModule,
    ImageNetCDataModule,
    ImageNetCLikeDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    Reading,
    RestrictedImageNetDataModule,
    RobustnessSuite,
    StylizedImageNetDataModule,
    TrainingCrop,
)
from lit_robust.data import settings as data_settings
from lit_robust.data.packing import shard_images
from lit_robust.data.packing.toy import write_toy_data
from lit_robust.data.settings import count_workers

MODULES = [
    CueConflictDataModule,
    ImageFolderDataModule,
    ImageNetADataModule,
    ImageNetCDataModule,
    ImageNetCLikeDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    RestrictedImageNetDataModule,
    StylizedImageNetDataModule,
]
# Null has a meaning for these; settings of a class of their own are the command line's to refuse.
MAY_BE_NULL = {"seed", "subset", "frost", "resize", "start_method", "in_distribution"}
NESTED = {"training", "evaluation", "reading"}


def settings(cls):
    names = inspect.signature(cls).parameters
    crops = {"crop"} if cls in (EvaluationCrop, ImageNetCLikeDataModule) else set()
    cells = {"corruptions", "severities"} if cls is ImageNetCDataModule else set()
    return [(cls, name) for name in names if name not in MAY_BE_NULL | NESTED | crops | cells]


@pytest.mark.parametrize(("cls", "name"), [pair for cls in [*MODULES, TrainingCrop, Reading] for pair in settings(cls)])
def test_null_is_refused_where_it_has_no_meaning(cls, name):
    # A config's null comes through the parser, whatever the type; as a word for "no" it would mean another setting.
    with pytest.raises(UserError, match=rf"{name} is null: (give|choose)"):
        cls(**{name: None})


def test_null_has_a_meaning_for_the_others():
    assert EvaluationCrop(None, None).crop is None
    assert Reading(start_method=None).start_method is None
    assert ImageNetDataModule(seed=None).seed >= 0
    assert {field.name for field in fields(Reading)} > {"shuffle", "block", "label", "on_error"}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ImageNetDataModule(batch_size=0), "batch_size is 0: give 1 or more"),
        (lambda: ImageNetDataModule(eval_batch_size=-3), "eval_batch_size is -3: give 1 or more"),
        (lambda: ImageNetDataModule(num_workers=-1), "num_workers is -1: give 0 to 1,024"),
        (lambda: ImageNetDataModule(num_workers=10**14), "num_workers is 100000000000000: give 0 to 1,024"),
        (lambda: RobustnessSuite([ImageNetDataModule()], num_workers=10**14), "num_workers is 100000000000000: give"),
        (lambda: EvaluationCrop(resize=10**14), "resize is 100000000000000: give 1 to 10,000"),
        (lambda: EvaluationCrop(crop=0), "crop is 0: give 1 to 10,000"),
        (lambda: EvaluationCrop("256"), "resize is '256': give a whole number, 1 to 10,000"),
        (lambda: ImageNetDataModule(evaluation=224), r"evaluation is 224: give the .* as EvaluationCrop\(resize=256, "),
        (
            lambda: ImageNetADataModule(evaluation=224),
            "evaluation is 224: give the group of settings, such as EvaluationCrop",
        ),
        (lambda: TrainingCrop(size=10**14), "training.size is 100000000000000: give 1 to 10,000"),
        (lambda: shard_images(Path(), Path("x"), "val", resize=10**14), "resize is 100000000000000: give 1 to 10,000"),
        (lambda: write_toy_data(Path("x"), 0, 10**14, 8, 16), "train is 100000000000000: give 1 to 1,000,000"),
        (lambda: write_toy_data(Path("x"), 0, 8, 8, 10**14), "size is 100000000000000: give 16 to 10,000"),
        (lambda: ImageNetDataModule(seed=-1), "seed is -1: give 0 or more"),
        (lambda: ImageNetDataModule(name=""), "name is '': give the name of one folder below the root"),
        (lambda: ImageNetDataModule(name="imagenet/"), "name is 'imagenet/': give the name of one folder"),
        (lambda: ImageNetDataModule(name=".."), "name is '..': give the name of one folder"),
        (
            lambda: ImageNetDataModule("ftp://me:secret@host/x"),
            "The root ftp://host/x is not a URL that can be read: give",
        ),
        (lambda: ImageNetDataModule("~nobody-of-that-name/x"), "The root ~nobody-of-that-name/x cannot be found"),
        (lambda: ImageFolderDataModule(labels="wnid"), "labels is 'wnid': choose one of sorted, imagenet"),
        (lambda: ImageNetADataModule(classes="200"), "classes is '200': choose one of imagenet-a, all"),
        (lambda: TrainingCrop("centre"), "training.crop is 'centre': choose one of none, random_resized, padded"),
        (lambda: TrainingCrop(size=0), "training.size is 0: give 1 to 10,000"),
        (lambda: Reading("random"), "reading.shuffle is 'random': choose one of global, block"),
        (lambda: Reading(on_error="ignore"), "reading.on_error is 'ignore': choose one of error, skip"),
        (
            lambda: Reading(start_method="thread"),
            "reading.start_method is 'thread': choose one of fork, forkserver, spawn",
        ),
        (
            lambda: RobustnessSuite([ImageNetDataModule()], missing="ignore"),
            "missing is 'ignore': choose one of error, skip",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_can_be(make, expected):
    with pytest.raises(UserError, match=expected):
        make()


def test_a_root_may_be_in_the_home_folder():
    assert ImageNetDataModule("~/data").root == str(Path.home() / "data")
    suite = RobustnessSuite([ImageNetDataModule()], "~/data")
    assert suite.members[0].root == str(Path.home() / "data")
    assert ImageNetDataModule("https://host/data/").root == "https://host/data/"


@pytest.mark.parametrize("module", [ImageNetADataModule(), ImageNetCLikeDataModule(), CueConflictDataModule()])
@pytest.mark.parametrize("stage", [TrainerFn.FITTING, TrainerFn.VALIDATING, TrainerFn.PREDICTING])
def test_a_test_set_is_for_testing_alone(module, stage):
    with pytest.raises(UserError, match=f"to test on, and has nothing for `lit-robust {stage.value}`: name a set with"):
        module.setup(stage)
    with pytest.raises(UserError, match="has nothing for"):
        RobustnessSuite([module, ImageNetDataModule()]).setup(stage)


@pytest.mark.parametrize(
    "make",
    [ImageFolderDataModule, RestrictedImageNetDataModule, ImageNetCDataModule, ImageNetCLikeDataModule,
     ImageNetODataModule, CueConflictDataModule],
)  # fmt: skip
def test_urls_that_cannot_be_read_from_keep_their_secrets(make):
    module = make("https://me:secret@host/x?token=hidden")
    with pytest.raises(UserError, match=r"https://host/x\?\.\.\. cannot: copy") as caught:
        module.setup("test")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_folders_and_shards_are_not_mistaken_for_each_other(tmp_path):
    (tmp_path / "imagenet" / "val" / "cat").mkdir(parents=True)
    with pytest.raises(
        UserError, match="imagenet/val holds no shards: read plain folders .* with ImageFolderDataModule"
    ):
        ImageNetDataModule(tmp_path).setup("test")
    (tmp_path / "imagenet-a" / "n01498041").mkdir(parents=True)
    with pytest.raises(
        UserError, match="imagenet-a holds no shards: pack the images there with `lit-robust data shard"
    ):
        ImageNetADataModule(tmp_path).setup("test")
    (tmp_path / "imagenet" / "imagenet-train-0000.tar").write_bytes(b"")
    with pytest.raises(
        UserError, match="imagenet holds shards, not folders of images: read it with ImageNetDataModule"
    ):
        ImageFolderDataModule(tmp_path).setup("fit")


def test_a_file_in_the_place_of_the_root_is_no_broken_info_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="There is no folder .*/imagenet-c/gaussian_noise/1: check the path"):
        ImageNetCDataModule(tmp_path / "file").setup("test")


@pytest.mark.parametrize(
    ("cores", "ranks", "task", "expected"),
    [(2, 1, None, 1), (1, 1, None, 1), (8, 1, None, 7), (64, 1, None, 12), (96, 8, None, 11), (8, 8, None, 1),
     (64, 8, "6", 5), (4, 1, "", 3)],
)  # fmt: skip
def test_workers_follow_the_cores(monkeypatch, cores, ranks, task, expected):
    monkeypatch.setattr(data_settings.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if task is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", task)
    assert count_workers("auto", ranks) == expected
    assert count_workers(5, ranks) == 5
