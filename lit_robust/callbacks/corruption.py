"""Accuracy under ImageNet-C's corruptions, and mean corruption error."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isnan
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from lit_robust.callbacks.display import log_heat_map
from lit_robust.callbacks.evaluation import EvaluationCallback, left_out
from lit_robust.callbacks.plain import data_of
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Example, Result
from lit_robust.metrics import TopKAccuracy
from lit_robust.metrics.corruption_error import (
    EXTRA_MEAN,
    TESTED_MEAN,
    CorruptionError,
    cell_name,
    summarise,
    tested_cells,
)
from lit_robust.metrics.intervals import Draws
from lit_robust.metrics.resampling import corruption_draws
from lit_robust.reference import imagenet_wnids
from lit_robust.reference.corruption_baselines import BaselineName, benchmark_of, corruption_baseline

CLEAN = "imagenet"
OF_BASELINE = ("mce", "relative_mce", "ce")  # Measures in units of the baseline's errors.


class CorruptionEvaluation(EvaluationCallback):
    """Mean corruption error, and accuracy of every corruption and severity (Hendrycks & Dietterich 2019).

    A relative error needs the same network's clean error: the evaluation counts the run's clean set, too, where there
    is one. What a ``SampleRestriction`` leaves of one of the two sets alone gives nothing relative.

    Args:
        dataset: name of the test loader; its groups are the cells.
        baseline: AlexNet's errors, which are the unit of corruption errors: ``imagenet-c`` measured on all 50,000
            images, or ``robustbench-5000`` on RobustBench's choice; null for a set of other classes than ImageNet's,
            and gives accuracies alone.
        clean: name of the test loader with the images as they were; nothing is relative where the run has no
            ``imagenet``, or left the named set out.
    """

    def __init__(
        self,
        dataset: str = "imagenet-c",
        baseline: BaselineName | None = "imagenet-c",
        clean: str = CLEAN,
    ) -> None:
        super().__init__(dataset)
        self.baseline = None if baseline is None else corruption_baseline(baseline)
        self.clean = clean

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the test loaders that it follows."""
        return (self.dataset, self.clean)

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where the set has no cells, other classes than the baseline, or no clean images."""
        super().check(trainer)
        data = data_of(trainer)
        described = data.evaluation_sets[self.dataset]
        if self.clean not in data.evaluation_sets and self.clean not in (CLEAN, *getattr(data, "missing_sets", {})):
            names = ", ".join(name for name in data.evaluation_sets if name != self.dataset) or "no other set"
            raise UserError(
                f"{self.label} has errors relative to {self.clean!r}, but the data have {names}: add that data module, "
                "or let clean name another."
            )
        if not described.groups:
            raise UserError(f"{self.dataset} has no corruptions: name a set such as imagenet-c.")
        known = described.protocol.get("num_classes")
        if self.baseline is not None and known not in (None, len(imagenet_wnids())):
            raise UserError(
                f"{self.dataset} has {known} classes, and AlexNet's errors are those among ImageNet's 1,000: set "
                "baseline to null for accuracies alone."
            )

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the sums to zero."""
        for warning in self._misfits("mce", described):
            rank_zero_warn(f"{self.label}: {warning}; set baseline to the one that fits, or to null.")
        clean = self.described_sets.get(self.clean)
        self.is_relative = self.baseline is not None and clean is not None
        if self.is_relative and self._is_restricted(described) != self._is_restricted(clean):
            self.is_relative = False
            rank_zero_warn(
                f"{self.label}: relative_mce is left out, as only one of {self.dataset} and {self.clean} is "
                "restricted; restrict both, or none."
            )
        self.metric = CorruptionError(described.groups, self.baseline).to(module.device)
        self.clean_metric = TopKAccuracy((1,)).to(module.device)
        self.image_of = images_of(data_of(module.trainer), self.dataset)
        images = 0 if self.image_of is None else int(self.image_of.max()) + 1
        # How often each image was right in each cell, and how often it was seen there.
        size = (2, images, len(described.groups))
        self.by_image = torch.zeros(size, dtype=torch.int32, device=module.device)
        self.trainer = module.trainer

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch of the corrupted set."""
        assert batch.group is not None
        self.metric.update(logits, batch.label, batch.group)
        if self.image_of is not None:
            place = self.image_of[batch.index.cpu()].to(batch.label.device), batch.group
            right = (logits.argmax(1) == batch.label).int()
            self.by_image[0].index_put_(place, right, accumulate=True)
            self.by_image[1].index_put_(place, torch.ones_like(right), accumulate=True)

    def update_from(self, dataset: str, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch of the corrupted set, or of the clean one."""
        if dataset == self.clean:
            self.clean_metric.update(logits, batch.label)
        else:
            self.update(module, batch, logits)

    def compute(self) -> list[Result]:
        """Return what the tested cells allow: see ``summarise`` for the names.

        Each count is the samples it was measured on: of the 15 benchmark corruptions, of one corruption, of one cell.
        """
        computed = self.metric.compute()
        cells = self.tested = tested_cells(self.metric.cells, computed["top1"], computed["count"])
        clean_error, clean = self._clean()
        values = summarise(cells, self.baseline, clean_error)
        counts = dict(zip(self.metric.cells, computed["count"].reshape(-1).tolist(), strict=True))
        facets, draws = facets_of_cells(self.metric.cells), self._draws()
        results = []
        for name, value in values.items():
            axes = facets.get(name, {})
            protocol = self._protocol(axes.get("measure", name), clean)
            counted = _counted(name, axes, counts)
            warnings = self._misfits(axes.get("measure", name), self.described)
            if "severity" in axes:
                result = self.share(name, value, protocol, counted, axes, warnings)
            else:
                bounds = (0.0, 1.0) if name.startswith(("top1", "mean")) else (-inf, inf)
                result = self.resampled(name, value, protocol, draws.get(name), counted, axes, warnings, bounds)
            results.append(replace(result, protocol=of_its_cells(name, axes.get("corruption"), result.protocol)))
        return results

    def _draws(self) -> dict[str, Draws]:
        """Return draws of what is of several cells, without what is relative to a clean error; empty if unknown."""
        if self.image_of is None:
            return {}
        right, seen = self.trainer.strategy.reduce(self.by_image.clone(), reduce_op="sum").cpu()

        def measures(top1: list[float]) -> dict[str, float]:
            drawn = {cell: value for cell, value in zip(self.metric.cells, top1, strict=True) if not isnan(value)}
            return {name: value for name, value in summarise(drawn, self.baseline).items() if name in wanted}

        cells = tested_cells(self.metric.cells, right.sum(0) / seen.sum(0), seen.sum(0))
        wanted = {name for name in summarise(cells, self.baseline) if not name[-1].isdigit()}
        return corruption_draws(right, seen, f"images of {self.dataset}", measures)

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Log the accuracies by corruption and severity, as a table and as a heat map."""
        log_heat_map(trainer, f"test/{self.dataset}/accuracy_by_cell", self.tested)
        return []

    @staticmethod
    def _is_restricted(described: EvaluationSet | None) -> bool:
        return described is not None and "samples_sha256" in described.protocol

    def _misfits(self, measure: str, described: EvaluationSet) -> list[str]:
        """Say if a value is in errors of a baseline that was measured on another number of images."""
        images = described.protocol.get("images_a_cell")
        if self.baseline is None or images is None or measure not in OF_BASELINE:
            return []
        # A few images that cannot be read do not change what was measured.
        if abs(images - self.baseline.images) <= self.baseline.images // 100:
            return []
        return [
            f"the baseline {self.baseline.name} is of {self.baseline.images} images a cell, and the set has {images}"
        ]

    def _clean(self) -> tuple[float | None, dict[str, Any]]:
        """Return the clean error, if there is one that fits, and what a protocol says of it."""
        clean = self.described_sets.get(self.clean)
        if clean is None or not self.is_relative:
            return None, {}
        top1 = float(self.clean_metric.compute())
        if not clean.count:
            return None, {}
        whole = clean.protocol.get("full_count", clean.count)
        facts = {"dataset": self.clean, "top1": top1, "images": clean.count, "of": whole}
        return 1 - top1, {"clean": facts, **left_out(self.described, clean)}

    def _protocol(self, measure: str, clean: dict[str, Any]) -> dict[str, Any]:
        """Return what a value's protocol has of its own; ``clean`` is that of a relative one."""
        if self.baseline is None or measure not in OF_BASELINE:
            return {}
        return {"baseline": self.baseline.protocol(), **(clean if measure == "relative_mce" else {})}


def images_of(data: Any, dataset: str) -> Tensor | None:
    """Return which image each sample of a corrupted set shows, int64 ``[N]`` numbers from 0; None where nobody knows.

    Args:
        data: of the test.
        dataset: name of the set; its samples' names are ``<corruption>/<severity>/`` and the image's, or the latter.
    """
    key = data.sample_key(dataset) if hasattr(data, "sample_key") else None
    if key is None:
        return None
    known: dict[str, int] = {}
    count = data.evaluation_sets[dataset].count
    numbers = tqdm(range(count), f"finding the images of {dataset}", delay=2)
    found = [known.setdefault(re.sub(r"^\w+/[1-5]/", "", key(number)), len(known)) for number in numbers]
    # Where no two samples of several cells have a name in common, names do not tell images.
    is_known = len(known) < count or len(data.evaluation_sets[dataset].protocol.get("cells", ())) == 1
    return torch.tensor(found) if is_known else None


def facets_of_cells(cells: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the facets of every value of a single corruption, by its name; see ``summarise`` for the names.

    Example:
        >>> facets_of_cells(["fog/3"])["top1_fog_3"]
        {'measure': 'top1', 'corruption': 'fog', 'severity': 3}
    """
    facets: dict[str, dict[str, Any]] = {}
    for cell in cells:
        corruption, severity = cell.split("/")
        facets[f"ce_{corruption}"] = {"measure": "ce", "corruption": corruption}
        facets[f"top1_{corruption}"] = {"measure": "top1", "corruption": corruption}
        facets[f"top1_{corruption}_{severity}"] = {**facets[f"top1_{corruption}"], "severity": int(severity)}
    return facets


def of_its_cells(metric: str, corruption: str | None, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value's protocol with those of the set's cells, and of its shards' digests, that it may depend on.

    The extra corruptions enter no mean, so with and without them a mean is measured alike.

    Args:
        metric: name of the measure.
        corruption: the single one that it is of; None for means over several.
        protocol: the value's, with all cells of the set.

    Example:
        >>> of_its_cells("mce", None, {"cells": ["fog/1", "spatter/1"], "extra_shards_sha256": "ab"})
        {'cells': ['fog/1']}
    """
    part = dict(protocol)
    extra, absent = part.pop("extra_shards_sha256", None), part.pop("lacking_cells", None)
    benchmark = benchmark_of(cell.split("/")[0] for cell in part.get("cells", ()))
    is_extra = metric == EXTRA_MEAN or (corruption is not None and corruption not in benchmark)
    if is_extra and extra is not None:
        part["shards_sha256"] = extra
    if "cells" in part:
        part["cells"] = [cell for cell in part["cells"] if (cell.split("/")[0] not in benchmark) is is_extra]
    if absent is not None and metric == TESTED_MEAN:
        part["restricted"] = "; ".join([*([str(part["restricted"])] if "restricted" in part else []), absent])
    return part


def _counted(metric: str, facets: Mapping[str, Any], counts: dict[str, int]) -> int:
    """Return how many samples a value was measured on."""
    if "severity" in facets:
        return counts[cell_name(facets["corruption"], facets["severity"])]
    if "corruption" in facets:
        return sum(count for cell, count in counts.items() if cell.split("/")[0] == facets["corruption"])
    benchmark = benchmark_of(cell.split("/")[0] for cell, count in counts.items() if count)
    of_benchmark = sum(count for cell, count in counts.items() if cell.split("/")[0] in benchmark)
    return sum(counts.values()) - of_benchmark if metric == EXTRA_MEAN else of_benchmark
