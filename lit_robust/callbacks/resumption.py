"""Lets an interrupted test go on at the set it was in."""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

import lit_robust
from lit_robust.callbacks.display import read_shown, write_shown
from lit_robust.callbacks.evaluation import EvaluationCallback, Found
from lit_robust.callbacks.plain import description
from lit_robust.callbacks.restriction import restricted
from lit_robust.core.results import RunResults

log = logging.getLogger(__name__)

FOLDER = "unfinished-test"


class Resumption(Callback):
    """Stores what every evaluation found as soon as its sets are through, and does not evaluate it again after a stop.

    ``unfinished-test/`` of the run's folder holds it until the test has ended: values, and the tables, curves and
    images that loggers were shown, who are shown them again. An evaluation of several sets takes all of them again
    unless it was finished. What is stored counts only where settings, network, test sets and files of recorded
    decisions are the same; a set none of whose evaluations need it any more is not read at all. A callback that is not
    an ``EvaluationCallback`` sees the sets that are read.

    Args:
        settings: the test's whole configuration, as text; without one every test starts anew.
    """

    def __init__(self, settings: str = "") -> None:
        self.settings = settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand in for the data's test loaders: when those are asked for, weights are there and nothing is read yet."""
        if stage != "test" or not self.settings or not hasattr(trainer.datamodule, "evaluation_sets"):  # type: ignore[attr-defined]
            return
        data = trainer.datamodule  # type: ignore[attr-defined]

        def remaining() -> dict[str, Any]:
            del data.test_dataloader  # What stood in; the class's own is seen again.
            return self._remaining(trainer, pl_module, data.test_dataloader())

        data.test_dataloader = remaining

    def _remaining(self, trainer: Trainer, module: LightningModule, loaders: Mapping[str, Any]) -> dict[str, Any]:
        """Hand finished evaluations what they found, and return the loaders, without batches where all is finished."""
        self.folder = Path(trainer.default_root_dir) / FOLDER
        self.identity = self._identity(trainer, module)
        evaluations = _evaluations(trainer)
        stored: dict[str, Found] = trainer.strategy.broadcast(self._read() if trainer.is_global_zero else {})
        missing = getattr(trainer.datamodule, "missing_sets", {})  # type: ignore[attr-defined]
        for evaluation in evaluations:
            if evaluation.dataset not in missing and (reason := evaluation.lacks(missing)):
                log.warning("%s is left out: %s.", evaluation.label, reason)
        left = [one for one in evaluations if one.label not in stored and not one.lacks(missing)]
        needed = {name for one in left for name in one.sets}
        known = {name for evaluation in evaluations for name in evaluation.sets}
        finished = (known - needed) & loaders.keys()
        if len(finished) == len(loaders):
            # Lightning runs no hook of a test without batches; a stop between the last set and the results file.
            stored, finished = {}, set()
        for evaluation in evaluations:
            evaluation.stored = stored.get(evaluation.label)
        self.kept = set(stored)
        if stored:
            read = [name for name in loaders if name not in finished]
            log.info("An interrupted test goes on with %s.", ", ".join(read))
        if finished:
            warnings.filterwarnings("ignore", message="Total length of `NoBatches` across ranks is zero")
        return {name: NoBatches() if name in finished else loader for name, loader in loaders.items()}

    def _identity(self, trainer: Trainer, module: LightningModule) -> str:
        """Return a digest of all that a result depends on."""
        sets = [restricted(described, trainer) for described in trainer.datamodule.evaluation_sets.values()]  # type: ignore[attr-defined]
        missing = getattr(trainer.datamodule, "missing_sets", {})  # type: ignore[attr-defined]
        settings = [
            lit_robust.__version__,
            self.settings,
            trainer.world_size,
            str(trainer.precision),  # What `auto` in the settings means differs between machines.
            description(module),
            [[one.name, one.count, one.protocol] for one in sets],
            [evaluation.inputs_sha256 for evaluation in _evaluations(trainer) if not evaluation.lacks(missing)],
        ]
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def _read(self) -> dict[str, Found]:
        """Return label of each finished evaluation to what it found; what is of another test is removed."""
        files = {file.parent: RunResults.load(file) for file in sorted(self.folder.glob("*/results.json"))}
        if any(one.run.get("identity") != self.identity for one in files.values()):
            shutil.rmtree(self.folder)
            return {}
        return {one.run["label"]: (one.results, one.examples, read_shown(place)) for place, one in files.items()}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store what was finished when this batch's set began, on rank 0."""
        if not self.settings or batch_idx > 0 or not trainer.is_global_zero:
            return
        for number, evaluation in enumerate(_evaluations(trainer)):
            if evaluation.finished and evaluation.label not in self.kept:
                facts = {"identity": self.identity, "label": evaluation.label}
                place = self.folder / str(number)
                write_shown(evaluation.shown, place)
                # Last, as it says that the evaluation is finished.
                RunResults(facts, {}, evaluation.results, evaluation.examples).save(place)
                self.kept.add(evaluation.label)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note how an interrupted test goes on."""
        if self.settings and isinstance(exception, KeyboardInterrupt | SystemExit):
            sentence = (
                "interrupted; measures that were finished are kept, and the same command goes on with the others."
            )
            exception.add_note(sentence if trainer.is_global_zero else "")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what was stored, on rank 0: the test is through."""
        if self.settings and trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)


class NoBatches:
    """Stands where a loader was, so that those after it keep their numbers."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _evaluations(trainer: Trainer) -> list[EvaluationCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EvaluationCallback)]  # type: ignore[attr-defined]
