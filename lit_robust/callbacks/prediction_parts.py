"""What a network said of every sample of a test set, as files: written bit by bit, read back part by part.

``predictions/<dataset>/`` holds ``part-<rank>-<number>.safetensors`` with the columns of some samples, ``names.txt``
with the name of each sample where the set knows them, and ``set.json``, which is written last: without it the rest is
not whole.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_robust.core.batch import EvaluationSet
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import atomic_path, write_tensors, write_text

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
        with atomic_path(kept.folder / NAMES) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
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
        raise UserError(f"{run} keeps no predictions: test with lit_robust.callbacks.KeepPredictions.")
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
