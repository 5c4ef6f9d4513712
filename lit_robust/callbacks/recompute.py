"""Measures taken again from kept predictions: the evaluations of a test, with stored answers instead of a network."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.accuracy import CalibrationEvaluation, ClassSubsetAccuracy, CleanAccuracy
from lit_robust.callbacks.category_accuracy import ListedClassAccuracy, MergedClassAccuracy
from lit_robust.callbacks.corruption import CLEAN, CorruptionEvaluation
from lit_robust.callbacks.error_consistency import ErrorConsistencyEvaluation, read_decisions
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.human_comparison import HumanComparison
from lit_robust.callbacks.ood import OodEvaluation, Score
from lit_robust.callbacks.predictions import ANSWER, KeptSet, read_kept
from lit_robust.callbacks.results_file import ResultsFile
from lit_robust.callbacks.shape_bias import ShapeBiasEvaluation
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import FILE_NAME, Result, RunResults
from lit_robust.metrics.shape_bias import Aggregation
from lit_robust.reference import imagenet_wnids
from lit_robust.reference.corruption_baselines import BaselineName

ROWS = 4096  # Samples a batch; no measure depends on it.


@dataclass(kw_only=True)
class AnsweredBatch(Batch):
    """A batch of kept answers; its images are not there, ``[B, 3, 0, 0]``.

    Attributes:
        answer: ``[B, num_classes]`` fp32 logits.
    """

    answer: Tensor


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

    def test_step(self, batch: AnsweredBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the stored answers, fp32 ``[B, num_classes]``."""
        return batch.answer


class KeptData(LightningDataModule):
    """Gives kept predictions as test sets, in batches that have answers in place of images.

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

    def __iter__(self) -> Iterator[AnsweredBatch]:
        for part in self.kept.parts():
            for begin in range(0, len(part["index"]), ROWS):
                yield self._batch({name: column[begin : begin + ROWS] for name, column in part.items()})

    def _batch(self, columns: Mapping[str, Tensor]) -> AnsweredBatch:
        answer = columns[ANSWER].float()
        if self.kept.what == "probabilities":
            # A logarithm is a logit up to a constant; a probability of 0 becomes the least that is a finite number.
            answer = answer.clamp_min(torch.finfo(torch.float32).tiny).log()
        return AnsweredBatch(
            image=torch.empty(len(answer), 3, 0, 0),
            answer=answer,
            label=columns["label"],
            index=torch.searchsorted(self.kept.index, columns["index"]),
            valid=torch.ones_like(columns["label"], dtype=torch.bool),
            group=columns.get("group"),
            texture=columns.get("texture"),
        )


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What a measure leaves open.

    Attributes:
        aggregation: how a category's probability follows from its classes': ``mean``, ``max`` or ``sum``.
        baseline: AlexNet's errors that corruption errors of ImageNet's 1,000 classes are measured in; null for none.
        clean: name of the set with the images as they were, which errors are relative to, and whose images are those in
            distribution where a set of others was kept alone.
        scores: how the unfamiliarity of an image is scored; probabilities give ``max_softmax`` alone.
        decisions: recorded decisions on cue-conflict images; null measures no error consistency.
    """

    aggregation: Aggregation = "mean"
    baseline: BaselineName | None = "imagenet-c"
    clean: str = CLEAN
    scores: Sequence[Score] = ("max_softmax",)
    decisions: Path | None = None


def recomputed_folder(run: Path) -> Path:
    """Return where measures taken again from a run go by default: a folder next to it, under which a report names them.

    Example:
        >>> recomputed_folder(Path("/runs/suite")).as_posix()
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
        UserError: the run keeps no predictions, they are of different networks, of another than the run's results or
            not what a choice needs, or ``output`` holds results that were not taken again.
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
    tested = RunResults.load(run) if (run / FILE_NAME).exists() else None
    if tested is not None:
        check_is_of_the_run(sets[0], tested, run)
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
    if tested is not None:
        given = {result.key for result in RunResults.load(output).results}
        if missing := not_given(tested.results, given, [kept.described.name for kept in sets]):
            log.warning("Of what %s measured, these are not taken again: %s.", run, ", ".join(missing))
    return output / FILE_NAME


def check_is_of_the_run(kept: KeptSet, tested: RunResults, run: Path) -> None:
    """Raise a UserError where kept predictions and the results next to them are of different networks."""
    own, other = (model.get("weights_sha256") for model in (kept.model, tested.model))
    if None not in (own, other) and own != other:
        raise UserError(
            f"The predictions in {run} are of another network than its {FILE_NAME}, which a test without "
            f"KeepPredictions wrote: test with it again, or move {FILE_NAME} away."
        )


def not_given(results: Sequence[Result], given: Collection[str], kept: Collection[str]) -> list[str]:
    """Return which results of a run are missing among those taken again; those of a set not kept in one.

    Args:
        results: the run's.
        given: keys of those taken again.
        kept: names of the sets whose predictions were kept.

    Example:
        >>> from dataclasses import replace
        >>> one, other = (Result("imagenet", name, 0.5, "fraction", 9, {}) for name in ("top1", "best_theta_top1"))
        >>> not_given([one, other, replace(one, dataset="pets")], {"test/imagenet/top1"}, ["imagenet"])
        ['imagenet/best_theta_top1', 'all of pets']
    """
    missing = (result for result in results if result.key not in given)
    names = (f"{each.dataset}/{each.metric}" if each.dataset in kept else f"all of {each.dataset}" for each in missing)
    return list(dict.fromkeys(names))


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
    names = [kept.described.name for kept in sets]
    if choices.clean != CLEAN and choices.clean not in names:
        raise UserError(f"No predictions of {choices.clean} were kept: let clean name one of {', '.join(names)}.")
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
        UserError: a score needs logits, and probabilities were kept.
    """
    described, name = kept.described, kept.described.name
    if "right" in described.protocol:
        return [ListedClassAccuracy(name)]
    if "number_of_categories" in described.protocol:
        return [MergedClassAccuracy(name)]
    if described.categories and described.groups:  # A set of model-vs-human's.
        return [HumanComparison(choices.decisions, name, choices.aggregation)] if choices.decisions else []
    if described.categories:
        found: list[EvaluationCallback] = [ShapeBiasEvaluation(name, choices.aggregation, examples=0)]
        if choices.decisions is not None:
            found.append(ErrorConsistencyEvaluation(choices.decisions, name, choices.aggregation))
        return found
    if described.groups and all("/" in group for group in described.groups):
        # As CorruptionEvaluation has it: a set that does not state its classes passes for ImageNet's.
        fits = described.protocol.get("num_classes") in (None, len(imagenet_wnids()))
        baseline = choices.baseline if fits else None
        return [CorruptionEvaluation(name, baseline, choices.clean), CalibrationEvaluation(name)]
    if len(described.groups) == 2:
        unknown = [score for score in choices.scores if score != "max_softmax"]
        if unknown and kept.what == "probabilities":
            raise UserError(f"{unknown[0]} needs logits, and probabilities of {name} were kept: name max_softmax.")
        known = None if "in_distribution" in described.protocol else choices.clean
        return [OodEvaluation(name, choices.scores, known)]
    measures: list[EvaluationCallback] = [CleanAccuracy(name), CalibrationEvaluation(name)]
    if kept.num_classes == len(imagenet_wnids()) and not described.classes:
        measures += [ClassSubsetAccuracy(name, "imagenet-a"), ClassSubsetAccuracy(name, "imagenet-o")]
    return measures
