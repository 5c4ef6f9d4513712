"""Writes the results of a test run into its folder."""

import logging
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import lit_robust
from lit_robust.callbacks.display import keep_evaluation, log_warnings
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.plain import data_of, describes, description
from lit_robust.core.errors import UserError
from lit_robust.core.files import file_sha256
from lit_robust.core.results import RunResults

log = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "timm", "numpy", "pillow", "simplejpeg")


def check_replaced(
    folder: Path, network: str | None, weights: str | None, study: str | None = None, partial: bool = False
) -> None:
    """Refuse results that would replace those of another network or study, or those of all images by a part's.

    The same network's may be replaced: it was trained on, or the settings are new. So may a quick look's, and a damaged
    file.

    Args:
        folder: where the results will lie.
        network: its name; None where a checkpoint will say it.
        weights: the file, or ``pretrained``; None for none.
        study: of ``lit-robust analyze``; None for a test.
        partial: whether they will be of a part of the images.

    Raises:
        UserError: they would.
    """
    try:
        found = RunResults.load(folder)
    except UserError:
        return
    if all(result.protocol.get("partial") for result in found.results):
        return
    source, kind = found.run.get("checkpoint") or found.model.get("weights"), found.run.get("study")
    own = network is not None and "network" in found.model and network != found.model["network"]
    own = own or ("weights" in found.model and _place(source) != _place(weights))
    if partial and not own:
        what, new = "of a whole test", "those of a part of its images"
    elif own or ("weights" in found.model and kind != study):
        what = f"of {_subject(kind, found.model.get('network'), source)}"
        new = f"those of {_subject(study, network, weights)}"
    else:
        return
    option = "--output" if study else "--trainer.default_root_dir"
    raise UserError(
        f"{folder} holds the results {what}, which {new} would replace: give this one a folder of its own, by {option}."
    )


def _subject(study: str | None, *parts: str | None) -> str:
    named = ", ".join(str(part) for part in parts if part)
    return f"{f'the study {study}' if study else 'a test'} of {named}"


def _place(weights: str | None) -> Path | None:
    return None if weights is None else Path(weights).resolve()


class ResultsFile(Callback):
    """Collects what the run's evaluation callbacks found, and writes ``results.json`` into the run's folder.

    A W&B run keeps it as an artifact, and its values in the summary.

    Args:
        command: the command line, to be kept with the results.
    """

    def __init__(self, command: str = "") -> None:
        self.command = command

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time, and which checkpoint is tested."""
        file = Path(trainer.ckpt_path or "")
        self.checkpoint_sha256 = file_sha256(file) if trainer.is_global_zero and file.is_file() else None
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, on rank 0."""
        if not trainer.is_global_zero:
            return
        evaluations = [c for c in trainer.callbacks if isinstance(c, EvaluationCallback)]  # type: ignore[attr-defined]
        missing = getattr(data_of(trainer), "missing_sets", {})
        folder = Path(trainer.default_root_dir).resolve()
        run = {
            "name": folder.name,
            "command": self.command,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "checkpoint_sha256": self.checkpoint_sha256,
            "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
            "precision": str(trainer.precision),
            # The trainer's is an attack's; answers of our modules are taken in full precision, see
            # ``ClassifierModule.test_step``.
            "scored_in": "fp32" if describes(pl_module) else str(trainer.precision),
            "ranks": trainer.world_size,
            "hardware": hardware(pl_module.device),
            "versions": versions(),
            "resumed": [callback.label for callback in evaluations if callback.stored is not None],
            "missing_sets": dict(missing),
            "left_out": {one.label: reason for one in evaluations if (reason := one.lacks(missing))},
        }
        found = RunResults(
            run=run,
            model=description(pl_module),
            results=[result for callback in evaluations for result in callback.results],
            examples=[example for callback in evaluations for example in callback.examples],
        )
        twice = {one.key for one in found.results if sum(other.key == one.key for other in found.results) > 1}
        for key in sorted(twice):
            log.warning("Two measures of this run give %s: give one of them another name.", key)
        log_warnings(trainer, found.results)
        keep_evaluation(trainer, found, found.save(folder))


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of everything a number may depend on."""
    return {
        "lit_robust": lit_robust.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what the run was computed on."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": "cpu", "machine": platform.machine(), "threads": torch.get_num_threads()}
