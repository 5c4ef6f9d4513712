"""What a network trains on and is validated with: order, ranks, readable images, class numbers that mean the same."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_sets import PLAIN, SMALL, WHOLE, cue_conflict, png, ready, write

from lit_robust.core.errors import UserError
from lit_robust.data import (
    CueConflictDataModule,
    ImageNetADataModule,
    ImageNetCDataModule,
    ImageNetCLikeDataModule,
    ImageNetDataModule,
    ImageNetODataModule,
    JoinedDataModule,
    Reading,
    StylizedImageNetDataModule,
)
from lit_robust.data.loading.samples import SampleTable
from lit_robust.data.loading.splits import TableSplit, check_same_classes
from lit_robust.reference import imagenet_names, imagenet_wnids
from lit_robust.shards import IndexedReader, ShardWriter


def test_every_module_shuffles_alike_through_its_own_loader(tmp_path, monkeypatch):
    write(tmp_path / "imagenet", "train", list(range(40)))
    write(tmp_path / "imagenet", "val", [0])
    orders, ahead = [], []
    monkeypatch.setattr(IndexedReader, "read_ahead", lambda self, number: ahead.append(number))
    for reading in (Reading(), Reading(shuffle="block", block=8)):
        module = ImageNetDataModule(tmp_path, PLAIN, WHOLE, batch_size=4, num_workers=0, seed=1, reading=reading)
        module.setup("fit")
        orders.append([batch.index.tolist() for batch in islice(module.train_dataloader(), 20)])
        assert sorted(np.concatenate(orders[-1]).tolist()) == list(range(40))
        assert len(ahead) == (40 if reading.shuffle == "block" else 0)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (1, 1, "holds 1 training images, fewer than the 2 ranks: start no more than 1, by trainer.devices"),
        (7, 4, "holds 7 training images, fewer than one batch of 4 on 2 ranks: set batch_size to 3 or less"),
    ],
)
def test_training_sets_too_small_for_the_ranks(tmp_path, count, batch_size, expected):
    write(tmp_path / "imagenet", "train", [0] * count)
    write(tmp_path / "imagenet", "val", [0])
    module = ready(ImageNetDataModule(tmp_path, PLAIN, WHOLE, batch_size=batch_size, **SMALL), "fit")
    module.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(UserError, match=expected):
        module.train_dataloader()


@pytest.mark.parametrize(("world", "batch_size"), [(1, 5), (2, 3), (3, 2), (7, 1)])
def test_evaluation_batches_are_no_larger_than_the_images_fill(tmp_path, world, batch_size):
    write(tmp_path / "imagenet", "val", [0, 1, 2, 3, 4])
    module = ready(ImageNetDataModule(tmp_path, PLAIN, WHOLE, eval_batch_size=10**9, num_workers=0))
    evaluated = []
    for rank in range(world):
        module.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world,
            num_devices=world,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        (batch,) = module.val_dataloader()
        assert len(batch) == batch_size
        evaluated += batch.label[batch.valid].tolist()
    assert sorted(evaluated) == [0, 1, 2, 3, 4]


def test_training_images_that_cannot_be_read_never_reach_the_network(tmp_path):
    write(tmp_path / "imagenet", "val", [0])
    with ShardWriter(tmp_path / "imagenet", "train", num_classes=1000) as writer:
        for number in range(8):
            writer.write(f"s{number}", {"png": b"no image" if number == 5 else png(number), "cls": b"%d" % number})
    reading = Reading(on_error="skip")
    module = ready(ImageNetDataModule(tmp_path, PLAIN, WHOLE, batch_size=4, num_workers=0, reading=reading), "fit")
    batches = list(module.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4], "every rank loads equal full batches"
    module.trainer = SimpleNamespace(training=True)
    trained = [module.on_after_batch_transfer(batch, 0) for batch in batches]
    assert sorted(len(batch) for batch in trained) == [3, 4]
    assert sorted(label for batch in trained for label in batch.label.tolist()) == [0, 1, 2, 3, 4, 6, 7]


def test_joined_sets_must_have_the_same_classes(tmp_path):
    for name, num_classes in (("imagenet", 2), ("stylized-imagenet", 3)):
        for split in ("train", "val"):
            write(tmp_path / name, split, [0] * 5, num_classes=num_classes)
    module = JoinedDataModule([ImageNetDataModule(), StylizedImageNetDataModule()], root=tmp_path)
    with pytest.raises(UserError, match="has 3 classes, but .* has 2: both must have the same classes"):
        module.setup("fit")


def test_joined_sets_must_number_their_classes_alike(tmp_path):
    for name, classes in (("imagenet", ["cat", "dog"]), ("stylized-imagenet", ["dog", "cat"])):
        for split in ("train", "val"):
            with ShardWriter(tmp_path / name, split, class_names=classes) as writer:
                writer.write("a", {"png": png(0), "cls": b"0"})
                writer.write("b", {"png": png(1), "cls": b"1"})
    module = JoinedDataModule([ImageNetDataModule(), StylizedImageNetDataModule()], root=tmp_path)
    expected = r"stylized-imagenet \(train\) has 'dog' as class 0, but .*imagenet \(train\) has 'cat' as class 0: both"
    with pytest.raises(UserError, match=expected):
        module.setup("fit")


def test_wordnet_ids_are_the_same_classes_as_their_english_names():
    def split(names):
        table = SampleTable([], np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64))
        return TableSplit(where="set", num_classes=len(names), class_names=tuple(names), protocol={}, table=table)

    check_same_classes(split(imagenet_wnids()), split(imagenet_names()))
    check_same_classes(split(imagenet_wnids()), replace(split(imagenet_wnids()), class_names=()))
    with pytest.raises(UserError, match="has 'goldfish' as class 0, but set has 'tench' as class 0"):
        check_same_classes(split(imagenet_names()), split(imagenet_wnids()[1:]))


@pytest.mark.parametrize("module", [ImageNetDataModule, ImageNetCDataModule])
def test_a_class_too_high_for_the_network_is_named_where_nobody_says_how_many_there_are(tmp_path, module):
    # Counted class by class up to the highest, these labels would take 73 TiB.
    cells = {"corruptions": ["fog"], "severities": [1, 2]} if module is ImageNetCDataModule else {}
    for place in ("imagenet", "imagenet-c/fog/1", "imagenet-c/fog/2"):
        write(tmp_path / place, "val", [0, 10**13], num_classes=None)
    data = ready(module(tmp_path, **cells, **SMALL))
    with pytest.raises(
        UserError, match=r"has 10000000000000/00001 in class 10000000000000: give .* or correct that class"
    ):
        data.check_classes(1000)


def test_every_set_tells_its_count_of_classes(tmp_path):
    for folder, split in (
        ("imagenet", "val"),
        ("imagenet-a", "test"),
        ("imagenet-o", "test"),
        ("imagenet-c/fog/1", "val"),
    ):
        write(tmp_path / folder, split, [1, 6, 7], num_classes=8)
    cue_conflict(tmp_path)
    whole = {"evaluation": WHOLE, **SMALL}
    modules = [
        ImageNetDataModule(tmp_path, **whole),
        ImageNetADataModule(tmp_path, "all", **whole),
        ImageNetODataModule(tmp_path, "all", **whole),
        ImageNetCDataModule(tmp_path, ["fog"], [1], **SMALL),
        ImageNetCLikeDataModule(tmp_path, ["fog"], [1], **SMALL),
        CueConflictDataModule(tmp_path, **SMALL),
    ]
    told = {
        name: described.protocol["num_classes"]
        for module in modules
        for name, described in ready(module).evaluation_sets.items()
    }
    assert told.pop("cue-conflict") == 16
    assert len(told) == 5
    assert set(told.values()) == {8}
    # ImageNet-A's own classes are among ImageNet's 1,000.
    write(tmp_path / "real" / "imagenet-a", "test", [6], num_classes=None)
    module = ready(ImageNetADataModule(tmp_path / "real", **whole))
    assert module.evaluation_sets["imagenet-a"].protocol["num_classes"] == 1000
