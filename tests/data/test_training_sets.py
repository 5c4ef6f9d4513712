"""Training through the data modules: order, ranks, and what of a batch a network gets."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_sets import PLAIN, SMALL, WHOLE, png, ready, write

from lit_robust.core.errors import UserError
from lit_robust.data import ImageNetDataModule, Reading
from lit_robust.shards import ShardWriter


def test_every_module_shuffles_alike_through_its_own_loader(tmp_path):
    write(tmp_path / "imagenet", "train", list(range(40)))
    write(tmp_path / "imagenet", "val", [0])
    orders = []
    for reading in (Reading(), Reading(shuffle="block", block=8)):
        module = ImageNetDataModule(tmp_path, PLAIN, WHOLE, 4, num_workers=0, seed=1, reading=reading)
        module.setup("fit")
        orders.append([batch.index.tolist() for batch in islice(module.train_dataloader(), 20)])
        assert sorted(np.concatenate(orders[-1]).tolist()) == list(range(40))
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
    module = ready(ImageNetDataModule(tmp_path, PLAIN, WHOLE, batch_size, **SMALL), "fit")
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
            global_rank=rank, world_size=world, strategy=SimpleNamespace(root_device=torch.device("cpu"))
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
    module = ready(ImageNetDataModule(tmp_path, PLAIN, WHOLE, 4, num_workers=0, reading=reading), "fit")
    batches = list(module.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4], "every rank loads equal full batches"
    module.trainer = SimpleNamespace(training=True)
    trained = [module.on_after_batch_transfer(batch, 0) for batch in batches]
    assert sorted(len(batch) for batch in trained) == [3, 4]
    assert sorted(label for batch in trained for label in batch.label.tolist()) == [0, 1, 2, 3, 4, 6, 7]
