"""What a network said of every sample: kept as files bit by bit, read back part by part; predictions.csv of predict."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.plain import data_of, description
from lit_robust.callbacks.restriction import sample_keys
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import atomic_path, write_tensors, write_text
from lit_robust.core.results import Example, Result

What = Literal["logits", "probabilities"]
Number = Literal["fp32", "fp16"]
SCHEMA = 1
FOLDER, MANIFEST, NAMES, PARTS = "predictions", "set.json", "names.txt", "part-*.safetensors"
NUMBERS: Mapping[Number, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
COLUMNS = ("index", "label", "group", "texture")
ANSWER = "answer"


@dataclass(frozen=True)
class KeptSet:
    """What was kept of one test set.

    Attributes:
        folder: where its parts lie.
        described: the test set, as it was evaluated.
        what: ``logits``, or ``probabilities`` over all classes.
        number: type that the answers are kept in.
        num_classes: columns of the answers.
        model: what the module said of itself; its ``weights_sha256`` tells the network.
    """

    folder: Path
    described: EvaluationSet
    what: What
    number: Number
    num_classes: int
    model: Mapping[str, Any]

    @cached_property
    def index(self) -> Tensor:
        """The kept samples' numbers in their set, ascending, int64 ``[N]``; see ``check``."""
        return self.check()

    def check(self) -> Tensor:
        """Return the kept samples' numbers in their set, ascending, int64 ``[N]``.

        Raises:
            DataError: a sample is there twice, or their number is not that of the set.
        """
        from safetensors import safe_open

        found = [torch.zeros(0, dtype=torch.int64)]
        for file in self._files():
            with safe_open(file, framework="pt") as part:
                found.append(part.get_tensor("index"))
        index = torch.cat(found).sort()[0]
        distinct = int((index.diff(prepend=index[:1] - 1) > 0).sum())
        if not len(index) == distinct == self.described.count:
            raise DataError(
                f"{self.folder} holds {len(index)} answers, {distinct} of them of different samples, where "
                f"{self.described.count} samples were evaluated: test again with KeepPredictions."
            )
        return index

    @cached_property
    def names(self) -> Sequence[str] | None:
        """Name of every sample of the set by its number; null where the set knew none."""
        file = self.folder / NAMES
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else None

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """Yield the columns of some samples: ``index``, ``label``, ``answer``, and ``group`` or ``texture``."""
        from safetensors.torch import load_file

        for file in self._files():
            yield load_file(file)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(PARTS))


def write_part(folder: Path, rank: int, number: int, columns: Mapping[str, Tensor]) -> None:
    """Write one part, all of it or nothing."""
    write_tensors(folder / f"part-{rank:04d}-{number:05d}.safetensors", columns)


def write_manifest(kept: KeptSet, names: Iterable[str] | None) -> None:
    """Write the names of the samples, one a line, and then the file that says the set is whole."""
    if names is not None:
        with atomic_path(kept.folder / NAMES) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{name}\n" for name in names)
    described = kept.described
    content = {
        "schema": SCHEMA,
        "what": kept.what,
        "number": kept.number,
        "num_classes": kept.num_classes,
        "set": {
            "name": described.name,
            "count": described.count,
            "protocol": dict(described.protocol),
            "categories": {name: list(classes) for name, classes in described.categories.items()},
            "class_names": list(described.class_names),
            "classes": list(described.classes),
            "groups": list(described.groups),
            "warnings": list(described.warnings),
        },
        "model": dict(kept.model),
    }
    write_text(kept.folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def remove_kept(folder: Path) -> None:
    """Remove an earlier run's predictions from a set's folder; first the file that says they are whole."""
    for file in (folder / MANIFEST, folder / NAMES, *folder.glob(PARTS)):
        file.unlink(missing_ok=True)


def read_kept(run: Path) -> list[KeptSet]:
    """Return the test sets whose predictions a run kept, in the order of their names.

    Args:
        run: the run's folder.

    Raises:
        UserError: there are none, or a set's file cannot be read.
    """
    manifests = sorted((run / FOLDER).glob(f"*/{MANIFEST}"))
    if not manifests:
        raise UserError(
            f"{run} keeps no predictions: test again with --trainer.callbacks+=lit_robust.callbacks.KeepPredictions, "
            "and --trainer.callbacks.dataset SET behind it for another set than imagenet."
        )
    return [_read_set(file) for file in manifests]


def _read_set(file: Path) -> KeptSet:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA}")
        described = EvaluationSet(**content["set"])
        facts = {name: content[name] for name in ("what", "number", "num_classes", "model")}
        return KeptSet(file.parent, described, **facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} does not describe kept predictions ({error}): test again with KeepPredictions."
        ) from error


class KeepPredictions(EvaluationCallback):
    """Writes each sample's index, label and answer into ``predictions/<dataset>/`` of the run's folder.

    ``lit-robust recompute`` takes the measures that need no network from these files. They are written as the run goes
    on: at most ``samples_a_file`` answers wait on the device of each rank. 50,000 images of 1,000 classes take 200 MB
    as fp32, all of ImageNet-C 15 GB.

    Args:
        dataset: name of the test loader.
        what: ``logits``, which every measure can be taken from, or ``probabilities`` over all classes.
        number: ``fp32``, from which measures come out the same to the last bit, or ``fp16`` at half the size.
        samples_a_file: how many samples a file holds, on each rank.
    """

    needs_categories = None

    def __init__(
        self,
        dataset: str = "imagenet",
        what: What = "logits",
        number: Number = "fp32",
        samples_a_file: int = 8192,
    ) -> None:
        super().__init__(dataset)
        if samples_a_file < 1:
            raise UserError(f"samples_a_file is {samples_a_file}: give 1 or more.")
        self.what: What = what
        self.number: Number = number
        self.samples_a_file = samples_a_file

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Remove an earlier run's files, on rank 0."""
        trainer = module.trainer
        self.folder = Path(trainer.default_root_dir) / FOLDER / self.dataset
        self.rank, self.written, self.num_classes = trainer.global_rank, 0, 0
        self.waiting: list[dict[str, Tensor]] = []
        self.number_waiting = 0
        if trainer.is_global_zero:
            remove_kept(self.folder)
        trainer.strategy.barrier("an earlier run's predictions are gone")

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep a batch; write a file where enough samples wait."""
        self.num_classes = logits.shape[1]
        answer = (logits.softmax(1) if self.what == "probabilities" else logits).to(NUMBERS[self.number])
        columns = {name: getattr(batch, name) for name in COLUMNS if getattr(batch, name) is not None}
        self.waiting.append({**columns, ANSWER: answer})
        self.number_waiting += len(batch)
        if self.number_waiting >= self.samples_a_file:
            self._write()

    def _write(self) -> None:
        columns = {name: torch.cat([part[name] for part in self.waiting]) for name in self.waiting[0]}
        if not columns[ANSWER].isfinite().all():
            raise UserError(
                f"A logit of {self.dataset} is too large for {self.number}, whose largest number is "
                f"{torch.finfo(columns[ANSWER].dtype).max:g}: set number to fp32."
            )
        write_part(self.folder, self.rank, self.written, columns)
        self.written += 1
        self.waiting, self.number_waiting = [], 0

    def compute(self) -> list[Result]:
        """Write what still waits; there is nothing to measure."""
        if self.number_waiting:
            self._write()
        return []

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Say that the set is whole, on rank 0 and after all ranks have written; read it back for its count.

        Raises:
            DataError: the files hold a sample twice, or not at all.
        """
        trainer.strategy.barrier("all predictions are written")
        if trainer.is_global_zero:
            kept = KeptSet(
                self.folder,
                self.described,
                self.what,
                self.number,
                self.num_classes,
                description(trainer.lightning_module),
            )
            kept.check()
            write_manifest(kept, self._names(trainer))
        return []

    def _names(self, trainer: Trainer) -> Iterable[str] | None:
        data = data_of(trainer)
        try:
            name = sample_keys(data, self.dataset)
        except UserError:  # A set without names is not a mistake here: the samples' numbers tell them apart.
            return None
        # A restriction leaves each sample its number among all.
        return map(name, range(data.evaluation_sets[self.dataset].count))


PREDICTIONS = "predictions.csv"
CSV_COLUMNS = ("index", "label", "prediction", "probability")


class PredictionFile(Callback):
    """Writes ``predictions.csv`` into the run's folder: one line a sample, in the order of the data set."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, float]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run's lines."""
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep each valid sample's most probable class; end after SIGTERM, as Lightning's own loop would not."""
        if trainer.received_sigterm:
            raise SIGTERMException
        kept = batch.select(batch.valid)
        broken = ~outputs[batch.valid].isfinite().all(1)
        if broken.any():
            raise DataError(f"The network gives no numbers for sample {int(kept.index[broken][0])}: check its weights.")
        probability, prediction = outputs[batch.valid].max(1)
        columns = (kept.index, kept.label, prediction, probability)
        self._rows += list(zip(*(column.tolist() for column in columns), strict=True))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' lines together and write them, on rank 0."""
        parts: list[Sequence[tuple[int, int, int, float]]] = [self._rows]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self._rows)
        if trainer.is_global_zero:
            rows = sorted(row for part in parts for row in part)
            path = Path(trainer.default_root_dir) / PREDICTIONS
            with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([CSV_COLUMNS, *rows])
