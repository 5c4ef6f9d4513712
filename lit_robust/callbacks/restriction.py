"""Evaluating on the images that some networks get right: the ImageNet-CL of Chen et al. 2020, section 3.1."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.plain import PlainData, data_of
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import DataError, UserError

SCHEMA = 2
_READABLE = (1, SCHEMA)  # The first had numbers alone.
# What of a set's protocol tells which samples have which number; how they are resized does not matter.
_IDENTITY = ("split", "shards_sha256", "extra_shards_sha256", "info_sha256", "restricted", "skipped", "cells")
_PARTS = ("in_distribution", "out_of_distribution")


@dataclass(frozen=True)
class Selection:
    """Samples of a test set.

    Attributes:
        samples_sha256: digest that tells which set's numbers these are.
        count: how many samples the whole set has.
        numbers: of the chosen ones, ascending.
        names: theirs, in that order; empty where the set knew none.
        labels: theirs, in that order; empty with the names.
    """

    samples_sha256: str
    count: int
    numbers: tuple[int, ...]
    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Remaining:
    """The samples of a set that a list means.

    Attributes:
        numbers: theirs in that set, ascending.
        matched_by: ``number`` in the set that the list was written of, ``name`` in another.
        labels: what the list says that each shows; empty where samples were matched by number.
    """

    numbers: tuple[int, ...]
    matched_by: Literal["number", "name"]
    labels: tuple[int, ...] = ()


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
        if content["schema"] not in _READABLE:
            raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA}")
        numbers = tuple(int(number) for number in content["correct"])
        names = tuple(str(name) for name in content.get("names", ()))
        labels = tuple(int(label) for label in content.get("labels", ()))
        if len(names) not in (0, len(numbers)) or len(labels) != len(names):
            raise ValueError(f"it has {len(names)} names and {len(labels)} labels of {len(numbers)} samples")
        found = Selection(str(content["samples_sha256"]), int(content["count"]), numbers, names, labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a list of samples ({error}): give a correct-<dataset>.json that CorrectSamples wrote."
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
    # The numbers are the same set's, so any list's names are those of all.
    first = next((each for each in selections if each.names), selections[0])
    if any((other.samples_sha256, other.count) != (first.samples_sha256, first.count) for other in selections):
        raise UserError("The lists of samples are of different sets: write all of them from the same shards.")
    common = set(first.numbers).intersection(*(other.numbers for other in selections))
    if not common:
        raise UserError("The lists of samples have none in common, so nothing is left to evaluate: give others.")
    places = [place for place, number in enumerate(first.numbers) if number in common]
    return replace(
        first,
        numbers=tuple(first.numbers[place] for place in places),
        names=tuple(first.names[place] for place in places if first.names),
        labels=tuple(first.labels[place] for place in places if first.labels),
    )


def image_name(key: str) -> str:
    """Return the last part of a sample's name, which stays the same in other folders and as another file type.

    Example:
        >>> image_name("fog/3/n01440764/ILSVRC2012_val_00000293.JPEG")
        'ILSVRC2012_val_00000293'
    """
    return key.rsplit("/", 1)[-1].split(".")[0]


def find_by_name(listed: Selection, described: EvaluationSet, key: Callable[[int], str]) -> Remaining:
    """Find the images of a list in a set of other shards, in each of its cells where it has some.

    A derived set, of whose source some images could not be made, may lack them; no other set may.

    Args:
        listed: the list, with names.
        described: the set.
        key: the name of each of its samples by its number.

    Raises:
        DataError: an image is not there, or its name is not its own, in the list or in the set.
    """
    cells = len(described.protocol.get("cells", ())) or 1
    labels = dict(zip(map(image_name, listed.names), listed.labels, strict=True))
    if len(labels) < len(listed.names):
        raise DataError(
            f"The list of samples gives {len(listed.names)} images {len(labels)} names, so they cannot be found in "
            f"{described.name}: evaluate the shards that it was written of."
        )
    times = dict.fromkeys(labels, 0)
    numbers, shows = [], []
    for number in range(described.count):
        name = image_name(key(number))
        if name in times:
            times[name] += 1
            numbers.append(number)
            shows.append(labels[name])
    said = [described.protocol.get(name) for name in ("generated", "as_loaded")]
    may_lack = any(isinstance(one, dict) and one.get("not_made") for one in said)
    for name, counted in times.items():
        if counted != cells and not (may_lack and counted == 0):
            each = f", not once in each of the {cells} cells" if cells > 1 else ", not once"
            raise DataError(
                f"The set {described.name} has the listed image {name} {counted} times{each}: restrict a set of the "
                "same images, with the names that they had."
            )
    if not numbers:
        raise DataError(f"The set {described.name} has none of the listed images: restrict a set of the same images.")
    return Remaining(tuple(numbers), "name", tuple(shows))


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
        self._found: tuple[str, Remaining] | None = None

    @cached_property
    def selection(self) -> Selection:
        """The samples that remain."""
        return intersection([read_selection(file) for file in self.files])

    def found(self, described: EvaluationSet, data: Any) -> Remaining:
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

    def _find(self, described: EvaluationSet, digest: str, data: Any) -> Remaining:
        if (self.selection.samples_sha256, self.selection.count) == (digest, described.count):
            return Remaining(self.selection.numbers, "number")
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
        digest = hashlib.sha256(json.dumps(found.numbers).encode()).hexdigest()
        protocol = {**described.protocol, "restricted": "; ".join(parts), "samples_sha256": digest}
        return replace(described, count=len(found.numbers), protocol=protocol)

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where the data, which are set up, do not have its set, or do not know its samples."""
        data = data_of(trainer)
        sets = data.evaluation_sets
        if isinstance(data, PlainData):
            raise UserError(
                f"SampleRestriction finds the samples of {self.dataset} by number or name, which a plain loader does "
                "not settle: test with a data module of lit_robust.data."
            )
        if self.dataset not in (*sets, *getattr(data, "missing_sets", {})):
            raise UserError(
                f"SampleRestriction restricts {self.dataset!r}, but the data have {', '.join(sets) or 'no test set'}: "
                "add that data module, or take the callback out."
            )
        if self.dataset in sets:
            restricted(sets[self.dataset], trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the set's loader, and make the mask over its samples."""
        self.check(trainer)
        data = data_of(trainer)
        sets = data.evaluation_sets
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
    return found[0].describe(described, data_of(trainer)) if found else described


def sample_keys(data: Any, dataset: str) -> Callable[[int], str]:
    """Return what gives the name of each sample of a test set.

    Args:
        data: a data module, or a suite of them.
        dataset: name of the test loader.

    Raises:
        UserError: the data know no names.
    """
    key: Callable[[int], str] | None = data.sample_key(dataset) if hasattr(data, "sample_key") else None
    if key is None:
        raise UserError(f"The samples of {dataset} have no names to find them by: copy the shards to a disk.")
    return key
