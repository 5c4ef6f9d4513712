"""Evaluating on the images that some networks get right: the ImageNet-CL of Chen et al. 2020, section 3.1."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.decisions import sample_keys
from lit_robust.callbacks.selection import (
    Found,
    Selection,
    find_by_name,
    intersection,
    read_selection,
    samples_digest,
)
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import DataError, UserError


class SampleRestriction(Callback):
    """Restricts every evaluation of a test set to the samples that are in all of some lists.

    With the lists of two networks that is ImageNet-CL: the validation images both get right. The networks are still
    given all images; their other answers count nowhere. In the set that the lists were written of, samples are found by
    their numbers; in a set of other shards, such as distorted or stylized copies of the images, by the last part of
    their names, in each of its cells. Each result's protocol says how many samples remain, and how they were found.

    Args:
        files: what ``CorrectSamples`` wrote, one or more.
        dataset: name of the test loader.
    """

    def __init__(self, files: Sequence[Path], dataset: str = "imagenet") -> None:
        if not files:
            raise UserError("SampleRestriction has no files: name those that CorrectSamples wrote.")
        self.files = [Path(file) for file in files]
        self.dataset = dataset
        self._found: tuple[str, Found] | None = None

    @cached_property
    def selection(self) -> Selection:
        """The samples that remain."""
        return intersection([read_selection(file) for file in self.files])

    def found(self, described: EvaluationSet, data: Any) -> Found:
        """Return which samples of a set remain.

        Args:
            described: the whole set.
            data: the data module that has it, or a suite.

        Raises:
            UserError: the lists are of another set and know no names, or the set knows none.
            DataError: a listed image is not in the set, or not once.
        """
        digest = samples_digest(described)
        # Every evaluation of the set asks, and names are read of all its samples.
        if self._found is None or self._found[0] != digest:
            self._found = digest, self._find(described, digest, data)
        return self._found[1]

    def _find(self, described: EvaluationSet, digest: str, data: Any) -> Found:
        if (self.selection.samples_sha256, self.selection.count) == (digest, described.count):
            return Found(self.selection.numbers, "number")
        if not self.selection.names:
            raise UserError(
                f"{self.files[0]} lists samples of another set of {self.selection.count}, not of the {described.count} "
                f"of {self.dataset}, and no names to find them by: write it again, or from the same shards."
            )
        return find_by_name(self.selection, described, sample_keys(data, self.dataset))

    def describe(self, described: EvaluationSet, data: Any) -> EvaluationSet:
        """Return the description of the restricted set; see `found` for the arguments and for what is raised."""
        found = self.found(described, data)
        parts = [str(described.protocol["restricted"])] if "restricted" in described.protocol else []
        files = ", ".join(file.name if len(self.files) == 1 else str(file) for file in self.files)
        parts.append(f"{len(found.numbers)} of {described.count} images, those in {files}, found by {found.matched_by}")
        told = hashlib.sha256(json.dumps(found.numbers).encode()).hexdigest()
        protocol = {**described.protocol, "restricted": "; ".join(parts), "samples_sha256": told}
        return replace(described, count=len(found.numbers), protocol=protocol)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the set's loader, and make the mask over its samples."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        sets = getattr(data, "evaluation_sets", {})
        if self.dataset not in (*sets, *getattr(data, "missing_sets", {})):
            raise UserError(
                f"SampleRestriction restricts {self.dataset!r}, but the data have {', '.join(sets) or 'no test set'}: "
                "add that data module, or take the callback out."
            )
        self.loader_number = -1
        if self.dataset not in sets:
            return
        self.loader_number = list(sets).index(self.dataset)
        described = sets[self.dataset]
        found = self.found(described, data)
        numbers = torch.tensor(found.numbers, device=pl_module.device)
        self.mask: Tensor = torch.zeros(described.count, dtype=torch.bool, device=pl_module.device)
        self.mask[numbers] = True
        self.labels: Tensor | None = None
        if found.matched_by == "name":
            self.labels = torch.zeros(described.count, dtype=torch.int64, device=pl_module.device)
            self.labels[numbers] = torch.tensor(found.labels, device=pl_module.device)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Declare the other samples of a batch not valid; the evaluations that follow get the same batch.

        Raises:
            DataError: an image of a listed name shows another class than the listed one.
        """
        if dataloader_idx != self.loader_number:
            return
        remains = self.mask[batch.index]
        if self.labels is not None:
            self._check_labels(batch, remains, self.labels[batch.index])
        batch.valid = batch.valid & remains
        if batch.broken is not None:
            batch.broken = batch.broken & remains

    def _check_labels(self, batch: Batch, remains: Tensor, listed: Tensor) -> None:
        # Names that are mere counters are the same in any shards, and say nothing of the image.
        other = remains & batch.valid & (batch.label != listed)
        if other.any():
            raise DataError(
                f"Sample {int(batch.index[other][0])} of {self.dataset} has label {int(batch.label[other][0])}, and "
                f"the listed image of its name {int(listed[other][0])}: restrict a set of the same images."
            )


def restricted(described: EvaluationSet, trainer: Trainer) -> EvaluationSet:
    """Return a set's description as the trainer's restriction of it leaves it.

    Raises:
        UserError: two restrict the same set.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = [c for c in callbacks if isinstance(c, SampleRestriction) and c.dataset == described.name]
    if len(found) > 1:
        raise UserError(f"Two SampleRestrictions restrict {described.name}: give all files to one.")
    return found[0].describe(described, trainer.datamodule) if found else described  # type: ignore[attr-defined]
