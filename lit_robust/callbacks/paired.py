"""Two networks on the same images: the difference of their accuracies, from predictions that runs kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.predictions import MANIFEST, KeptSet, read_kept
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.files import file_sha256
from lit_robust.core.results import Result
from lit_robust.metrics.base import among_classes
from lit_robust.metrics.intervals import Interval, paired_interval


@dataclass(frozen=True)
class Difference:
    """Two networks on one set.

    Attributes:
        dataset: name of the test loader.
        count: images.
        first: top-1 accuracy of the first network.
        second: of the second.
        interval: 95 % interval of second - first.
    """

    dataset: str
    count: int
    first: float
    second: float
    interval: Interval

    @property
    def value(self) -> float:
        """Second - first."""
        return self.second - self.first


def paired_differences(first: Path, second: Path) -> list[Difference]:
    """Return the difference on each set that both runs kept predictions of.

    Args:
        first: a run's folder.
        second: another's.

    Raises:
        UserError: they have no set in common, or other images of one.
    """
    kept: list[Mapping[str, KeptSet]] = [{one.described.name: one for one in read_kept(run)} for run in (first, second)]
    # Labels of a set with categories are not classes.
    names = [name for name, one in kept[0].items() if name in kept[1] and not one.described.categories]
    if not names:
        raise UserError(
            f"{first} and {second} kept predictions of no set in common: test both on the same sets, with "
            "KeepPredictions."
        )
    return [_compared(name, kept[0][name], kept[1][name].described, *_right(kept[1][name])) for name in names]


def _compared(name: str, first: KeptSet, described: EvaluationSet, others: Tensor, other: Tensor) -> Difference:
    """Return the difference to a kept set of a second network's verdicts, by the numbers of its samples, ascending."""
    numbers, one = _right(first)
    prepared = json.loads(json.dumps(described.protocol, default=str))  # As what was kept was read.
    if not torch.equal(numbers, others) or first.described.protocol != prepared:
        raise UserError(
            f"The two runs saw other images of {name}, or otherwise prepared: restrict both to the same, and test "
            "again."
        )
    gained, lost = int((other & ~one).sum()), int((one & ~other).sum())
    count = len(numbers)
    shares = float(one.double().mean()), float(other.double().mean())
    return Difference(name, count, shares[0], shares[1], paired_interval(gained, lost, count))


def _right(kept: KeptSet) -> tuple[Tensor, Tensor]:
    """Return the samples' numbers, ascending, and whether the network is right about each."""
    kept.check()
    parts = [
        (part["index"], among_classes(part["answer"].float(), kept.described.classes).argmax(1) == part["label"])
        for part in kept.parts()
    ]
    numbers, order = torch.cat([index for index, _ in parts]).sort()
    return numbers, torch.cat([right for _, right in parts])[order]


def paired_results(first: Path, second: Path) -> list[Result]:
    """Return the differences as results of the second run, ``top1_difference``, on each set that both kept.

    Args:
        first: a run's folder.
        second: another's.

    Raises:
        UserError: see ``paired_differences``.
    """
    protocols = {one.described.name: one.described.protocol for one in read_kept(second)}
    found = []
    for one in paired_differences(first, second):
        own_protocol = {**protocols[one.dataset], "less": {"run": first.resolve().name, "top1": one.first}}
        found.append(
            Result(one.dataset, "top1_difference", one.value, "fraction", one.count, own_protocol, one.interval)
        )
    return found


class PairedDifference(EvaluationCallback):
    """Top-1 accuracy less that of an earlier run on the same images, as ``top1_difference``.

    Its interval is that of the difference, which tells far smaller ones than the intervals of the two accuracies do.
    The state is 16 bytes an image, on the module's device.

    Args:
        run: the earlier run's folder, which kept its predictions (``KeepPredictions``).
        dataset: name of the test loader.
    """

    def __init__(self, run: Path, dataset: str = "imagenet") -> None:
        super().__init__(dataset)
        self.run = Path(run)

    @property
    def inputs_sha256(self) -> str:
        """Digest of the other run's predictions."""
        return file_sha256(self._first.folder / MANIFEST)

    @property
    def _first(self) -> KeptSet:
        found = next((one for one in read_kept(self.run) if one.described.name == self.dataset), None)
        if found is None:
            raise UserError(f"{self.run} kept no predictions of {self.dataset}: test it with KeepPredictions on it.")
        return found

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Read what the other run says of itself, and forget all verdicts."""
        self.first = self._first
        self.verdicts: list[Tensor] = [torch.zeros(0, 2, dtype=torch.int64, device=module.device)]

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep the numbers of images, and whether they are right."""
        right = among_classes(logits, self.described.classes).argmax(1) == batch.label
        self.verdicts.append(torch.stack([batch.index, right.long()], 1))

    def compute(self) -> list[Result]:
        """Return the difference.

        Raises:
            UserError: the other run saw other images, or otherwise prepared.
        """
        own = torch.cat(self.verdicts)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        numbers, right = torch.cat(gather_all_tensors(own) if distributed else [own]).cpu().T
        numbers, order = numbers.sort()
        found = _compared(self.dataset, self.first, self.described, numbers, right[order].bool())
        other = {"run": self.run.name, "weights_sha256": self.first.model.get("weights_sha256"), "top1": found.first}
        return [self.result("top1_difference", found.value, "fraction", {"less": other}, interval=found.interval)]


def paired_text(found: list[Difference], first: str, second: str) -> str:
    """Return the differences as a table of a terminal."""
    rows = [("set", "images", first, second, "second - first, percentage points, 95 %")]
    for one in found:
        low, high = one.interval
        rows.append(
            (
                one.dataset,
                f"{one.count:,}",
                f"{100 * one.first:.1f}",
                f"{100 * one.second:.1f}",
                f"{100 * one.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
