"""The base of all evaluations: one measure on named test sets, whose samples are counted exactly."""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.display import Shown, displaying, show
from lit_robust.callbacks.plain import PlainData, data_of, logits_of_step, valid_part
from lit_robust.callbacks.restriction import restricted
from lit_robust.core.batch import Batch, EvaluationSet, as_batch
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.results import Example, Result
from lit_robust.metrics.intervals import BOOTSTRAP, WILSON, Draws, Interval, spread, wilson

# What of a protocol says that samples are missing.
ROUNDING = 1e-6  # of a share.
LIMITS = ("restricted", "skipped", "broken_images", "partial", "full_count")


@dataclass
class CountedSet:
    """One test set on this rank, while its batches come.

    Attributes:
        described: the set, as a restriction leaves it.
        number: of its loader.
        seen: int64, valid samples so far.
        broken: int64, samples so far that could not be read and that the settings allow to skip.
        came: how many samples, valid or not, this rank was given so far.
    """

    described: EvaluationSet
    number: int
    seen: Tensor
    broken: Tensor
    came: int = 0

    @classmethod
    def start(cls, described: EvaluationSet, number: int, device: torch.device) -> "CountedSet":
        """Return a set of which nothing has come."""
        seen, broken = torch.zeros(2, dtype=torch.int64, device=device)
        return cls(described, number, seen, broken)

    def count(self, batch: Batch, kept: Batch) -> None:
        """Count a batch, of which ``kept`` is the valid part."""
        self.came += len(batch)
        self.seen = self.seen + len(kept)
        if batch.broken is not None:
            self.broken = self.broken + batch.broken.sum()

    def as_seen(self, trainer: Trainer) -> EvaluationSet:
        """Return the set's description with what came of it, over all ranks; a collective call.

        ``broken_images`` of the protocol says how many could not be read; ``partial`` that only a part was asked for,
        of the ``full_count`` that could be read.

        Raises:
            DataError: not as many samples came as were asked for.
        """
        seen, broken = (int(trainer.strategy.reduce(n.clone(), reduce_op="sum")) for n in (self.seen, self.broken))
        asked = _asked(trainer, self.described)
        if asked is not None and seen + broken != asked:
            raise DataError(
                f"{seen + broken} samples of {self.described.name} were evaluated where {asked} were asked for: no "
                "result is given."
            )
        protocol, count = dict(self.described.protocol), self.described.count
        if broken:
            protocol, count = {**protocol, "broken_images": broken}, count - broken
        warnings = list(self.described.warnings)
        if isinstance(data_of(trainer), PlainData) and seen > count > 0:
            warnings.append(f"the loader gave {seen} samples of a data set of {count}")
        elif seen != count and count > 0:
            protocol |= {"partial": True, "full_count": count}
        return replace(self.described, count=seen, protocol=protocol, warnings=warnings)


def _asked(trainer: Trainer, described: EvaluationSet) -> int | None:
    """Return of how many samples there must be answers; None where batches or a restricted set are cut, or unknown."""
    batches = trainer.limit_test_batches
    # To Lightning 1.0 is everything, 1 is one batch.
    data = data_of(trainer)
    if not (isinstance(batches, float) and batches == 1.0) or isinstance(data, PlainData):
        return None
    limit = getattr(data, "limit", None)
    if limit is None:
        return described.count
    return None if "samples_sha256" in described.protocol else min(limit, described.count)


def left_out(first: EvaluationSet, second: EvaluationSet) -> dict[str, Any]:
    """Return what a result of two sets has to say of the second one's gaps, joined with what the first one's says.

    Args:
        first: the set that the result goes by; what its protocol alone says is not repeated.
        second: the other one; unreadable images of it count whatever their class.

    Example:
        >>> whole, cut = EvaluationSet("a", 9, {"broken_images": 1}), EvaluationSet("b", 9, {"broken_images": 2})
        >>> left_out(whole, cut), left_out(cut, EvaluationSet("c", 9, {}))
        ({'broken_images': 3}, {})
    """
    own, other = first.protocol, second.protocol
    joined: dict[str, Any] = {}
    for name in ("restricted", "skipped"):
        if name in other:
            words = [str(own[name])] if name in own else []
            joined[name] = "; ".join([*words, f"of {second.name} {other[name]}"])
    if "broken_images" in other:
        joined["broken_images"] = own.get("broken_images", 0) + other["broken_images"]
    if other.get("partial"):
        joined["partial"] = True
    return joined


Found = tuple[list[Result], list[Example], list[Shown]]


class EvaluationCallback(Callback, ABC):
    """Follows one test loader, and gives results when all its samples were seen once.

    A subclass keeps sums in ``update`` and turns them into results in ``compute``. The base hands it only valid
    samples, refuses logits that are not numbers, checks the count, logs, and keeps the results for the results file.

    Args:
        dataset: name of the test loader, such as ``imagenet``.
    """

    # Labels of a set with categories are numbers of categories, not of the network's classes. None takes any set.
    needs_categories: bool | None = False

    def __init__(self, dataset: str = "imagenet") -> None:
        self.dataset = dataset
        self.left_out = False
        self.finished = False
        # What it found before an interruption; see Resumption.
        self.stored: Found | None = None
        self.results: list[Result] = []
        self.examples: list[Example] = []
        self.shown: list[Shown] = []

    @abstractmethod
    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set all sums to zero on the module's device, before the first batch."""

    @abstractmethod
    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch of valid samples.

        Args:
            module: the module under test.
            batch: float images in [0, 1]; possibly empty.
            logits: fp32 ``[B, num_classes]``.
        """

    @abstractmethod
    def compute(self) -> list[Result]:
        """Return the results over all ranks; every rank calls this, and gets the same."""

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Show images and tables to the loggers, and return the examples for the report; every rank calls this."""
        return []

    @property
    def label(self) -> str:
        """What tells this evaluation's results from another's; no two of a run may share it."""
        return f"{type(self).__name__} on {self.dataset}"

    @property
    def inputs_sha256(self) -> str:
        """Digest of files that its results depend on besides settings, network and data; empty where there are none."""
        return ""

    def update_from(self, dataset: str, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch of valid samples of one of `sets`; an evaluation of several sets tells them apart here."""
        self.update(module, batch, logits)

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the test loaders that it follows: its own, and others, which the data may lack."""
        return (self.dataset,)

    def result(
        self,
        metric: str,
        value: Tensor | float,
        unit: str,
        protocol: Mapping[str, Any],
        count: int | None = None,
        interval: tuple[float, float] | None = None,
        facets: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
    ) -> Result:
        """Return a result of this test set, its protocol joined with the data's.

        Args:
            metric: name of the measure.
            value: the value.
            unit: ``fraction``, ``count``, or what the value is in, such as ``nats``.
            protocol: plain values that settle how it was measured.
            count: samples it was measured on; null for the whole set.
            interval: lower and upper end of a 95 % interval, where the measure has one.
            facets: the axes that the value stands at, such as ``{"norm": "l2", "eps": 0.5}``.
            warnings: sentences on why the value may mislead.
        """
        counted = self.described.count if count is None else count
        return Result(
            self.dataset,
            metric,
            float(value),
            unit,
            counted,
            {**self.described.protocol, **protocol},
            interval,
            facets or {},
            (*self.described.warnings, *warnings),
        )

    def share(
        self,
        metric: str,
        value: Tensor | float,
        protocol: Mapping[str, Any],
        count: int | None = None,
        facets: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
        of: int | None = None,
    ) -> Result:
        """Return a fraction of independent images as a result, with Wilson's interval.

        Args:
            metric: these are those of ``result``.
            value: the fraction.
            protocol: see there.
            count: see there.
            facets: see there.
            warnings: see there.
            of: images that it is a fraction of; null for ``count``.
        """
        base = (self.described.count if count is None else count) if of is None else of
        share = float(value)
        if base and not -ROUNDING <= share <= 1 + ROUNDING:
            raise UserError(
                f"{type(self).__name__} gives {metric} as {share:g}, which is not a share of images: return "
                f"self.result({metric!r}, value, unit, protocol), with a unit such as 'nats'."
            )
        share = min(max(share, 0.0), 1.0) if base else share
        whole = {**protocol, "interval": WILSON}
        return self.result(metric, share, "fraction", whole, count, wilson(share * base, base), facets, warnings)

    def resampled(
        self,
        metric: str,
        value: Tensor | float,
        protocol: Mapping[str, Any],
        draws: Draws | None,
        count: int | None = None,
        facets: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
        bounds: Interval = (0.0, 1.0),
    ) -> Result:
        """Return a fraction that is not one of images as a result, with the bootstrap's interval.

        Args:
            metric: these are those of ``result``.
            value: the fraction.
            protocol: see there.
            draws: of the bootstrap; null gives no interval.
            count: see there.
            facets: see there.
            warnings: see there.
            bounds: what the measure cannot leave.
        """
        interval = None if draws is None else spread(float(value), draws, bounds)
        whole = {**protocol, **({} if interval is None else {"interval": BOOTSTRAP})}
        return self.result(metric, value, "fraction", whole, count, interval, facets, warnings)

    def lacks(self, missing: Mapping[str, str]) -> str:
        """Return why there is nothing to evaluate; empty where there is.

        Args:
            missing: name of every test set that is left out to the sentence that says so.
        """
        return missing.get(self.dataset, "")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the loader by its name; an evaluation of a set that the data left out does nothing."""
        data = data_of(trainer)
        self.finished = self.stored is not None
        self.results, self.examples, self.shown = self.stored or ([], [], [])
        self.left_out = self.lacks(getattr(data, "missing_sets", {})) != ""
        if self.left_out or self.finished:
            return
        self.check(trainer)
        sets: Mapping[str, EvaluationSet] = data.evaluation_sets
        self.tested_sets = [
            CountedSet.start(restricted(sets[name], trainer), list(sets).index(name), pl_module.device)
            for name in self.sets
            if name in sets
        ]
        self._describe([one.described for one in self.tested_sets])
        self.last_number = max(one.number for one in self.tested_sets)
        self.prepare(pl_module, self.described)

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where the data, which are set up, do not have its set, or another callback evaluates it."""
        sets: Mapping[str, EvaluationSet] = data_of(trainer).evaluation_sets
        if self.dataset not in sets:
            names = ", ".join(sets) or "no test set"
            raise UserError(
                f"{type(self).__name__} evaluates {self.dataset!r}, but the data have {names}: "
                "add that data module, name another set, or take the callback out."
            )
        others = [c for c in trainer.callbacks if isinstance(c, EvaluationCallback) and c is not self]  # type: ignore[attr-defined]
        if any(other.label == self.label for other in others):
            raise UserError(
                f"Two callbacks evaluate {self.label}: give one another name, where it takes one, or test with it in "
                "a run of its own."
            )
        categories = sets[self.dataset].categories
        if self.needs_categories not in (None, bool(categories)):
            has = "has" if categories else "has no"
            raise UserError(f"{self.label} cannot be evaluated, as that set {has} categories: choose another dataset.")

    def _describe(self, sets: Sequence[EvaluationSet]) -> None:
        self.described_sets = {described.name: described for described in sets}
        self.described = self.described_sets[self.dataset]

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compute the results when a later set begins: on all ranks at the same batch, as each has as many of a set."""
        if not (self.left_out or self.finished) and dataloader_idx > self.last_number:
            self._finish(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand the valid part of its sets' batches, and the set's name, to ``update_from``."""
        if self.left_out or self.finished:
            return
        for one in self.tested_sets:
            if dataloader_idx == one.number:
                taken = as_batch(batch, one.came)
                answers = logits_of_step(outputs, pl_module, taken)
                kept, logits = valid_part(taken, answers, one.described.name, trainer)
                one.count(taken, kept)
                self.update_from(one.described.name, pl_module, kept, logits)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results, after computing those of the last set; show again what was stored."""
        if not (self.left_out or self.finished):
            self._finish(trainer)
        for shown in self.shown if self.stored is not None else ():
            show(trainer, shown)
        for result in self.results:
            # Every rank has the same value: of equal ones the largest is each, where a mean may be rounded.
            pl_module.log(result.key, result.value, sync_dist=True, reduce_fx="max")

    def _finish(self, trainer: Trainer) -> None:
        """Check the counts over all ranks, then compute, show and keep the results."""
        self._describe([one.as_seen(trainer) for one in self.tested_sets])
        self.results = self.compute()
        if not isinstance(self.results, list) or not all(isinstance(one, Result) for one in self.results):
            raise UserError(
                f"compute of {type(self).__name__} returns {reprlib.repr(self.results)}: return a list of "
                "self.share(...) and self.result(...)."
            )
        is_partial = bool(self.results) and all(result.protocol.get("partial") for result in self.results)
        with displaying(is_partial) as self.shown:
            self.examples = self.illustrate(trainer)
        self.finished = True


def log_images(trainer: Trainer, key: str, images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> None:
    """Show images, if there are any, to every logger that takes them."""
    show(trainer, Shown("images", key, images=images, captions=captions))


def log_table(trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Show a table to every logger that takes one."""
    show(trainer, Shown("table", key, columns, rows))
