"""Evaluating on the images that some networks get right: the ImageNet-CL of Chen et al. 2020, section 3.1."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_robust.batch import EvaluationSet
from lit_robust.errors import UserError

SCHEMA = 1
# What of a set's protocol tells which samples have which number; how they are resized does not matter.
_IDENTITY = ("split", "shards_sha256", "info_sha256", "restricted", "skipped", "cells")
_PARTS = ("in_distribution", "out_of_distribution")


@dataclass(frozen=True)
class Selection:
    """Samples of a test set by their numbers.

    Attributes:
        samples_sha256: digest that tells which set's numbers these are.
        count: how many samples the whole set has.
        numbers: the chosen ones, ascending.
    """

    samples_sha256: str
    count: int
    numbers: tuple[int, ...]


def samples_digest(described: EvaluationSet) -> str:
    """Return a sha256 over what settles which sample of a set has which number."""
    known = {name: described.protocol[name] for name in (*_IDENTITY, *_PARTS) if name in described.protocol}
    return hashlib.sha256(json.dumps([described.count, known], sort_keys=True, default=str).encode()).hexdigest()


def read_selection(file: Path) -> Selection:
    """Read what ``CorrectSamples`` wrote.

    Raises:
        UserError: it cannot be read, or is of another form.
    """
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA}")
        numbers = tuple(int(number) for number in content["correct"])
        found = Selection(str(content["samples_sha256"]), int(content["count"]), numbers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no list of samples ({error}): give a correct-<dataset>.json that CorrectSamples wrote."
        ) from error
    if list(numbers) != sorted(set(numbers)) or (numbers and not 0 <= numbers[0] <= numbers[-1] < found.count):
        raise UserError(f"{file} lists a sample twice, or one that is none of {found.count}: write it again.")
    return found


def intersection(selections: Sequence[Selection]) -> Selection:
    """Return the samples that are in all of the selections.

    Raises:
        UserError: they are of different sets, or have no sample in common.

    Example:
        >>> intersection([Selection("a", 5, (0, 2, 4)), Selection("a", 5, (2, 3, 4))]).numbers
        (2, 4)
    """
    first = selections[0]
    if any((other.samples_sha256, other.count) != (first.samples_sha256, first.count) for other in selections):
        raise UserError("The lists of samples are of different sets: write all of them from the same shards.")
    common = set(first.numbers).intersection(*(other.numbers for other in selections[1:]))
    if not common:
        raise UserError("The lists of samples have none in common, so nothing is left to evaluate: give others.")
    return replace(first, numbers=tuple(sorted(common)))


class SampleRestriction(Callback):
    """Restricts every evaluation of a test set to the samples that are in all of some lists.

    With the lists of two networks that is ImageNet-CL: the validation images both get right. The networks are still
    given all images; their other answers count nowhere. Each result's protocol says how many samples remain.

    Args:
        files: what ``CorrectSamples`` wrote, one or more.
        dataset: name of the test loader.
    """

    def __init__(self, files: Sequence[Path], dataset: str = "imagenet") -> None:
        if not files:
            raise UserError("SampleRestriction has no files: name those that CorrectSamples wrote.")
        self.files = [Path(file) for file in files]
        self.dataset = dataset

    @cached_property
    def selection(self) -> Selection:
        """The samples that remain."""
        return intersection([read_selection(file) for file in self.files])

    def describe(self, described: EvaluationSet) -> EvaluationSet:
        """Return the description of the restricted set.

        Raises:
            UserError: the lists are of another set.
        """
        digest = samples_digest(described)
        if (self.selection.samples_sha256, self.selection.count) != (digest, described.count):
            raise UserError(
                f"{self.files[0]} lists samples of another set of {self.selection.count}, not of the {described.count} "
                f"of {self.dataset}: write it from the same shards."
            )
        numbers = self.selection.numbers
        parts = [str(described.protocol["restricted"])] if "restricted" in described.protocol else []
        files = ", ".join(file.name if len(self.files) == 1 else str(file) for file in self.files)
        parts.append(f"{len(numbers)} of {described.count} images, those in {files}")
        told = hashlib.sha256(json.dumps(numbers).encode()).hexdigest()
        protocol = {**described.protocol, "restricted": "; ".join(parts), "samples_sha256": told}
        return replace(described, count=len(numbers), protocol=protocol)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the set's loader, and make the mask over its samples."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        sets = getattr(data, "evaluation_sets", {})
        if self.dataset not in (*sets, *getattr(data, "missing_sets", {})):
            raise UserError(
                f"SampleRestriction restricts {self.dataset!r}, but the data have {', '.join(sets) or 'no test set'}: "
                "add that data module, or take the callback out."
            )
        self.loader_number = list(sets).index(self.dataset) if self.dataset in sets else -1
        self.mask: Tensor = torch.zeros(self.selection.count, dtype=torch.bool, device=pl_module.device)
        self.mask[list(self.selection.numbers)] = True

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Declare the other samples of a batch not valid; the evaluations that follow get the same batch."""
        if dataloader_idx != self.loader_number:
            return
        remains = self.mask[batch.index]
        batch.valid = batch.valid & remains
        if batch.broken is not None:
            batch.broken = batch.broken & remains


def restricted(described: EvaluationSet, trainer: Trainer) -> EvaluationSet:
    """Return a set's description as the trainer's restriction of it leaves it.

    Raises:
        UserError: two restrict the same set.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = [c for c in callbacks if isinstance(c, SampleRestriction) and c.dataset == described.name]
    if len(found) > 1:
        raise UserError(f"Two SampleRestrictions restrict {described.name}: give all files to one.")
    return found[0].describe(described) if found else described
