"""Tiny shards in the layouts of the real sets, and what a loader gives of them."""

import io

import torch
from PIL import Image

from lit_robust.data import EvaluationCrop, TrainingCrop
from lit_robust.shards import ShardWriter

WHOLE = EvaluationCrop(resize=None, crop=None)
PLAIN = TrainingCrop(crop="none", size=8, flip=False)
SMALL = {"eval_batch_size": 3, "num_workers": 0}


def png(value, size=8):
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value % 256, value // 256, 7)).save(file, "PNG")
    return file.getvalue()


def write(folder, split, labels, num_classes=1000, keys=None, shard_size=4, size=8):
    """Write one image a label, whose red channel is its place."""
    with ShardWriter(folder, split, shard_size=shard_size, num_classes=num_classes) as writer:
        for place, label in enumerate(labels):
            key = f"{label:04d}/{place:05d}" if keys is None else keys[place]
            writer.write(key, {"png": png(place, size), "cls": b"%d" % label})


def everything(loader):
    """Return all valid samples of a loader, as columns."""
    batches = [batch.select(batch.valid) for batch in loader]
    columns = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in ("image", "label", "index", "group", "texture")
        if getattr(batches[0], name) is not None
    }
    return columns


def ready(module, stage="test"):
    module.setup(stage)
    return module


def loaded(module):
    (loader,) = module.test_dataloader().values()
    return everything(loader)


def cue_conflict(folder):
    keys = ["bear/bear1-car2", "car/car3-car1", "car/car4-oven1", "dog/dog1-bear2"]
    write(folder / "cue-conflict", "test", [0, 1, 1, 2], keys=keys)
