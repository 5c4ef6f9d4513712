"""Measures taken again from kept predictions: the evaluations of a test, with stored answers instead of a network."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lit_robust.batch import Batch, EvaluationSet
from lit_robust.callbacks import (
    CalibrationEvaluation,
    ClassSubsetAccuracy,
    CleanAccuracy,
    CorruptionEvaluation,
    ErrorConsistencyEvaluation,
    EvaluationCallback,
    OodEvaluation,
    ResultsFile,
    ShapeBiasEvaluation,
)
from lit_robust.callbacks.decisions import read_decisions
from lit_robust.callbacks.ood import Score
from lit_robust.callbacks.prediction_parts import ANSWER, KeptSet, read_kept
from lit_robust.errors import UserError
from lit_robust.metrics.shape_bias import Aggregation
from lit_robust.reference import imagenet_wnids
from lit_robust.reference.corruption_baselines import BaselineName
from lit_robust.results import FILE_NAME, RunResults

log = logging.getLogger(__name__)
ROWS = 4096  # Samples a batch; no measure depends on it.


@dataclass(frozen=True)
class Choices:
    """What a measure leaves open.

    Attributes:
        aggregation: how a category's probability follows from its classes': ``mean``, ``max`` or ``sum``.
        baseline: AlexNet's errors that corruption errors of ImageNet's 1,000 classes are measured in; null for none.
        clean: name of the set with the images as they were, which errors are relative to, and whose images are those in
            distribution where a set of others was kept alone.
        scores: what tells how strange an image is; probabilities give ``max_softmax`` alone.
        decisions: recorded decisions on cue-conflict images; null measures no error consistency.
    """

    aggregation: Aggregation = "mean"
    baseline: BaselineName | None = "imagenet-c"
    clean: str = "imagenet"
    scores: Sequence[Score] = ("max_softmax",)
    decisions: Path | None = None


def beside(run: Path) -> Path:
    """Return where measures taken again from a run go by default: a folder next to it, under which a report names them.

    Example:
        >>> beside(Path("/runs/suite")).as_posix()
        '/runs/suite-recomputed'
    """
    folder = run.resolve()
    return folder.with_name(f"{folder.name}-recomputed")


def recompute(run: Path, output: Path, choices: Choices, command: str) -> Path:
    """Take every measure that needs no network from a run's kept predictions, and write a results file.

    Args:
        run: folder of a run that was tested with ``KeepPredictions``.
        output: folder for ``results.json``; not the run's own, whose other results would be lost.
        choices: what the measures leave open.
        command: the command line, to be kept with the results.

    Returns:
        The results file. Each value's protocol has ``recomputed``: from which run, and from what.

    Raises:
        UserError: the run keeps no predictions, they are of different networks or not what a choice needs, or
            ``output`` holds results that were not taken again.
        DataError: the kept predictions are not one of each sample.
    """
    if output.resolve() == run.resolve():
        raise UserError(f"The output {output} is the run's own folder, whose results it would replace: name another.")
    check_is_replaceable(output)
    sets = read_kept(run)
    check_choices(sets, choices)
    networks = {str(kept.model.get("weights_sha256")) for kept in sets}
    if len(networks) > 1:
        raise UserError(f"The predictions in {run} are of {len(networks)} networks: test all sets again in one run.")
    measures = [measure for kept in sets for measure in measures_of(kept, choices) if has_partner(measure, sets)]
    if not measures:
        raise UserError(f"The predictions in {run} allow no measure alone: test with KeepPredictions on more sets.")
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=output,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*measures, ResultsFile(command)],
    )
    trainer.test(Answers(sets[0].model), KeptData(sets, run.resolve().name), verbose=False)
    return output / "results.json"


def check_is_replaceable(output: Path) -> None:
    """Raise a UserError where a folder holds the results of a test, which those taken again would replace."""
    if not (output / FILE_NAME).exists():
        return
    if any("recomputed" not in result.protocol for result in RunResults.load(output).results):
        raise UserError(f"{output} holds results of a test, which would be replaced: name another by `recompute -o`.")


def check_choices(sets: Sequence[KeptSet], choices: Choices) -> None:
    """Check that the kept sets and answers are such that every choice can be followed.

    Raises:
        UserError: they are not, or recorded decisions cannot be read.
    """
    if "memory_similarity" in choices.scores:
        raise UserError("memory_similarity needs the memory, and answers alone were kept: take it out of scores.")
    if choices.decisions is not None:
        read_decisions(choices.decisions)
        if not any(kept.described.categories for kept in sets):
            raise UserError(f"No kept set has categories that {choices.decisions} could be on: leave decisions out.")


def has_partner(measure: EvaluationCallback, sets: Sequence[KeptSet]) -> bool:
    """Tell whether the second set that a measure cannot do without was kept; say so where it was not."""
    known = measure.known if isinstance(measure, OodEvaluation) else None
    if known is None or known in (kept.described.name for kept in sets):
        return True
    log.warning("%s is left out: it needs predictions of %s, too.", measure.label, known)
    return False


def measures_of(kept: KeptSet, choices: Choices) -> list[EvaluationCallback]:
    """Return the evaluations that a set's description and its kept answers allow.

    Args:
        kept: the set.
        choices: what the measures leave open.

    Raises:
        UserError: a score of strangeness needs logits, and probabilities were kept.
    """
    described, name = kept.described, kept.described.name
    is_imagenet = kept.num_classes == len(imagenet_wnids())
    if described.categories:
        found: list[EvaluationCallback] = [ShapeBiasEvaluation(name, choices.aggregation, examples=0)]
        if choices.decisions is not None:
            found.append(ErrorConsistencyEvaluation(choices.decisions, name, choices.aggregation))
        return found
    if described.groups and all("/" in group for group in described.groups):
        return [CorruptionEvaluation(name, choices.baseline if is_imagenet else None, choices.clean)]
    if len(described.groups) == 2:
        unknown = [score for score in choices.scores if score != "max_softmax"]
        if unknown and kept.what == "probabilities":
            raise UserError(f"{unknown[0]} needs logits, and probabilities of {name} were kept: name max_softmax.")
        known = None if "in_distribution" in described.protocol else choices.clean
        return [OodEvaluation(name, choices.scores, known)]
    measures: list[EvaluationCallback] = [CleanAccuracy(name), CalibrationEvaluation(name)]
    if is_imagenet and not described.classes:
        measures += [ClassSubsetAccuracy(name, "imagenet-a"), ClassSubsetAccuracy(name, "imagenet-o")]
    return measures


class Answers(LightningModule):
    """Stands for the network: hands on the answers that a replayed batch holds.

    Args:
        model: what the module that gave them said of itself.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        self._model = dict(model)

    def describe(self) -> dict[str, Any]:
        """Return what the network's module said of itself."""
        return self._model

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the stored answers, fp32 ``[B, num_classes]``."""
        return batch.image


class KeptData(LightningDataModule):
    """Gives kept predictions as test sets; where a batch's images would be, there are the answers.

    Samples are numbered anew, so that those of a restricted set have no gaps.

    Args:
        sets: what was kept.
        origin: name of the run it is from.
    """

    def __init__(self, sets: Sequence[KeptSet], origin: str) -> None:
        super().__init__()
        self.sets = sets
        self.origin = origin

    def sample_key(self, name: str) -> Callable[[int], str] | None:
        """Return what gives the name of each sample of a set by its new number; None where the set knew none."""
        kept = next(kept for kept in self.sets if kept.described.name == name)
        names = kept.names
        return None if names is None else lambda number: names[int(kept.index[number])]

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """Name to description of every set, which says where its answers are from."""
        return {kept.described.name: self._described(kept) for kept in self.sets}

    def _described(self, kept: KeptSet) -> EvaluationSet:
        origin = {"run": self.origin, "from": kept.what, "number": kept.number}
        return replace(kept.described, protocol={**kept.described.protocol, "recomputed": origin})

    def test_dataloader(self) -> dict[str, "Replay"]:
        """Return what replays each set, by name."""
        return {kept.described.name: Replay(kept) for kept in self.sets}


class Replay:
    """Iterates over the kept samples of a set, in batches of at most ``ROWS``."""

    def __init__(self, kept: KeptSet) -> None:
        self.kept = kept

    def __iter__(self) -> Iterator[Batch]:
        for part in self.kept.parts():
            for begin in range(0, len(part["index"]), ROWS):
                yield self._batch({name: column[begin : begin + ROWS] for name, column in part.items()})

    def _batch(self, columns: Mapping[str, Tensor]) -> Batch:
        answer = columns[ANSWER].float()
        if self.kept.what == "probabilities":
            # A logarithm is a logit up to a constant; a probability of 0 becomes the least that is a finite number.
            answer = answer.clamp_min(torch.finfo(torch.float32).tiny).log()
        return Batch(
            image=answer,
            label=columns["label"],
            index=torch.searchsorted(self.kept.index, columns["index"]),
            valid=torch.ones_like(columns["label"], dtype=torch.bool),
            group=columns.get("group"),
            texture=columns.get("texture"),
        )
