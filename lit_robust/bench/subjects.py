"""What attacks and training are measured on: a network in our form and in the peers', and images with labels."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lit_robust.attacks import PGD
from lit_robust.data.shard_splits import open_table
from lit_robust.data.split import Reading
from lit_robust.data.transforms import EvaluationCrop
from lit_robust.errors import UserError
from lit_robust.models import Classifier
from lit_robust.shards import decode_rgb

Precision = Literal["fp32", "bf16"]


class PlainClassifier(nn.Module):
    """A network as peers are used with: normalisation in front, single precision, torch's usual memory layout.

    Args:
        classifier: ours, whose weights it shares where the layout allows; copied otherwise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network.to(memory_format=torch.contiguous_format)
        self.register_buffer("mean", classifier.mean.clone())
        self.register_buffer("std", classifier.std.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def read_images(folder: Path, split: str, count: int, crop: EvaluationCrop) -> tuple[Tensor, Tensor]:
    """Return the first images of a split, float32 ``[count, 3, H, W]`` in [0, 1], and their labels ``[count]``.

    Raises:
        UserError: the split has fewer images.
    """
    source = open_table(folder, split, Reading())
    if len(source) < count:
        raise UserError(f"{folder} has {len(source)} images in {split}, fewer than {count}: lower --images.")
    reader = source.table.readers[0]
    pixels = [crop(decode_rgb(reader.image_bytes(row), reader.name(row))) for row in range(count)]
    return torch.stack(pixels).float().div_(255), torch.tensor(source.table.label[:count]).long()


def check_peers_norm(attack: PGD) -> None:
    """Raise a UserError for a norm that not every peer attacks in."""
    if attack.norm == "l1":
        raise UserError(
            "Of the peers Foolbox alone attacks in l1, and leaves the ball: set the attack's norm to l2 or linf."
        )


def precise(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of a precision: nothing, or bfloat16 autocast."""
    return nullcontext() if precision == "fp32" else _autocast(device)


@contextmanager
def _autocast(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes: once on a processor, on an accelerator at least for a second in a row.

    Alone it would begin on an idle device, and be timed with the launch of its first kernels.
    """
    synchronise(device)
    begin, taken = time.perf_counter(), 0
    while not taken or (device.type != "cpu" and time.perf_counter() - begin < 1):
        work()
        taken += 1
    synchronise(device)
    return (time.perf_counter() - begin) / taken


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done its work, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
