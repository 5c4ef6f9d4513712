"""Two networks on the same images: the difference of their accuracies, from the predictions that their runs kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_robust.callbacks.predictions import KeptSet, read_kept
from lit_robust.core.errors import UserError
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
    return [_difference(name, kept[0][name], kept[1][name]) for name in names]


def _difference(name: str, first: KeptSet, second: KeptSet) -> Difference:
    (numbers, one), (others, other) = _right(first), _right(second)
    if not torch.equal(numbers, others) or first.described.protocol != second.described.protocol:
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
        told = {**protocols[one.dataset], "less": {"run": first.resolve().name, "top1": one.first}}
        found.append(Result(one.dataset, "top1_difference", one.value, "fraction", one.count, told, one.interval))
    return found


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
