"""Whether a network errs on the same cue-conflict images as people do, whose recorded decisions are read here."""

import csv
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.plain import data_of
from lit_robust.callbacks.restriction import sample_keys
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.metrics import category_probabilities
from lit_robust.metrics.error_consistency import ErrorConsistency
from lit_robust.metrics.resampling import consistency_draws
from lit_robust.metrics.shape_bias import Aggregation

# Columns of (observer, image, decision): those of model-vs-human's and texture-vs-shape's files, and of a plain table.
_FORMS = (("subj", "imagename", "object_response"), ("model", "image", "decision"))


def image_stem(name: str) -> str:
    """Return what tells an image from others in a sample's key or in a published file name.

    Published names have a prefix for each trial, which ends in an underscore; those of ImageNet's images have one more,
    behind the WordNet id.

    Example:
        >>> image_stem("0001_s5n_dnn_0_airplane_00_airplane1-bicycle2.png"), image_stem("airplane/airplane1-bear2")
        ('airplane1-bicycle2', 'airplane1-bear2')
        >>> image_stem("0001_nse_s01_0.03_elephant_10_n02504458_7209.png")
        'n02504458_7209'
    """
    parts = PurePosixPath(name).stem.split("_")
    return "_".join(parts[-2:] if re.fullmatch(r"n\d{8}", parts[-2:][0]) else parts[-1:])


def read_decisions(place: Path) -> dict[str, dict[str, str]]:
    """Read recorded decisions.

    Args:
        place: a CSV file, or a folder of which every CSV file is read. Columns are ``subj``, ``imagename`` and
            ``object_response``, as in bethgelab/model-vs-human ``raw-data``, or ``model``, ``image`` and ``decision``.

    Returns:
        Observer to the image's stem to the category that was decided for, in the order of the files' names.

    Raises:
        UserError: there is no such file, it has other columns, or an observer decided twice on an image.
    """
    files = sorted(place.glob("*.csv")) if place.is_dir() else [place]
    found: dict[str, dict[str, str]] = {}
    for file in files:
        for observer, image, decision in _rows(file):
            seen = found.setdefault(observer, {})
            if image in seen:
                raise UserError(f"{file} has a second decision of {observer} on {image}: give each image once.")
            seen[image] = decision
    if not found:
        raise UserError(f"{place} holds no decisions: give a CSV file, or a folder of them.")
    return found


def _rows(file: Path) -> list[tuple[str, str, str]]:
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened)
            columns = reader.fieldnames or ()
            form = next((form for form in _FORMS if set(form) <= set(columns)), None)
            if form is None:
                raise UserError(
                    f"{file} has the columns {', '.join(columns) or '(none)'}: it needs {', '.join(_FORMS[0])}, or "
                    f"{', '.join(_FORMS[1])}."
                )
            observer, image, decision = form
            return [(row[observer], image_stem(row[image]), row[decision]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}): give a CSV file of decisions.") from error


def decided_categories(
    decisions: Mapping[str, str], stems: list[str], categories: Mapping[str, int], not_seen: int, other: int
) -> list[int]:
    """Return the category number that an observer decided for on each image.

    Args:
        decisions: image's stem to the category.
        stems: of the test set's samples, in their order.
        categories: name to number.
        not_seen: for images without a decision.
        other: for decisions that are not a category, such as ``na``.
    """
    return [categories.get(decisions[stem], other) if stem in decisions else not_seen for stem in stems]


HUMAN = "subject-"  # How the published files call people.
NOT_SEEN, OTHER = -1, -2


class ErrorConsistencyEvaluation(EvaluationCallback):
    """Cohen's kappa of the network's and recorded observers' errors (Geirhos, Meding & Wichmann 2020).

    A trial is an image that the observer saw, with or without conflict of cues; right is the category of its shape, as
    in bethgelab/model-vs-human ``analyses.py``.

    Args:
        decisions: CSV file of recorded decisions, or a folder of such files; see ``read_decisions``.
        dataset: name of the test loader; its set must have categories.
        aggregation: how a category's probability follows from its classes': ``mean``, ``max`` or ``sum``.
    """

    needs_categories = True

    def __init__(self, decisions: str | Path, dataset: str = "cue-conflict", aggregation: Aggregation = "mean") -> None:
        super().__init__(dataset)
        self.decisions = Path(decisions)
        self.aggregation: Aggregation = aggregation

    @property
    def inputs_sha256(self) -> str:
        """Digest of the files of decisions."""
        files = sorted(self.decisions.glob("*.csv")) if self.decisions.is_dir() else [self.decisions]
        try:
            contents = [file.read_bytes() for file in files]
        except OSError as error:
            raise UserError(f"{self.decisions} cannot be read ({error}): give a CSV file of decisions.") from error
        return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()

    def check(self, trainer: Trainer) -> None:
        """Read the decisions; raise a UserError where they cannot be, or none is of an image of the set."""
        super().check(trainer)
        recorded, self.digest = read_decisions(self.decisions), self.inputs_sha256
        data = data_of(trainer)
        key = sample_keys(data, self.dataset)
        # A restriction leaves each sample its number among all.
        described = data.evaluation_sets[self.dataset]
        numbers = {name: number for number, name in enumerate(described.categories)}
        stems = [image_stem(key(number)) for number in range(described.count)]
        decided = {
            observer: decided_categories(answers, stems, numbers, NOT_SEEN, OTHER)
            for observer, answers in recorded.items()
        }
        self.observers = [name for name, answers in decided.items() if any(answer != NOT_SEEN for answer in answers)]
        if not self.observers:
            raise UserError(
                f"No decision in {self.decisions} is of an image of {self.dataset}, such as {stems[0]}: give decisions "
                "on these images."
            )
        self.decided = torch.tensor([decided[name] for name in self.observers], dtype=torch.int64)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the counts to zero."""
        self.decided = self.decided.to(module.device)
        self.metric = ErrorConsistency(len(self.observers)).to(module.device)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch."""
        answers = category_probabilities(logits, self.described.categories, self.aggregation).argmax(1)
        recorded = self.decided[:, batch.index]
        observed = torch.where(recorded == NOT_SEEN, NOT_SEEN, (recorded == batch.label).long())
        self.metric.update(answers == batch.label, observed)

    def compute(self) -> list[Result]:
        """Return ``error_consistency_<observer>``, and ``error_consistency_humans``, the mean over people."""
        computed = self.metric.compute()
        values, counts = computed["error_consistency"].reshape(-1).tolist(), computed["counts"]
        protocol: dict[str, Any] = {
            "aggregation": self.aggregation,
            "decisions": self.decisions.name,
            "decisions_sha256": self.digest,
        }
        results = []
        for name, value, table in zip(self.observers, values, counts, strict=True):
            trials = int(table.sum())
            agreed = {"agreement": int(table.trace()) / trials if trials else None}
            stem = re.sub(r"\W+", "_", name)
            facets, own_protocol = {"measure": "error_consistency", "observer": name}, {**protocol, **agreed}
            draws = consistency_draws(table, f"error consistency with {name} on {self.dataset}")
            metric = f"error_consistency_{stem}"
            results.append(self.resampled(metric, value, own_protocol, draws, trials, facets, bounds=(-1.0, 1.0)))
        people = [place for place, name in enumerate(self.observers) if name.startswith(HUMAN)]
        if people:
            mean = sum(values[place] for place in people) / len(people)
            own_protocol = {**protocol, "observers": len(people)}
            trials = int(counts[people].sum())
            facets = {"measure": "error_consistency", "variant": "humans"}
            results.append(
                self.result("error_consistency_humans", mean, "fraction", own_protocol, trials, facets=facets)
            )
        return results
