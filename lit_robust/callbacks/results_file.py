"""Writes the results of a test run into its folder."""

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

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "timm", "numpy", "pillow", "simplejpeg")


def check_replaced(folder: Path) -> None:
    """Refuse a test of a part of the images where the results of a whole one lie, which it would replace.

    Raises:
        UserError: a folder's results are of all images of a set.
    """
    try:
        found = RunResults.load(folder).results
    except UserError:
        return  # There are none, or a damaged file, which a test writes again.
    if any(not result.protocol.get("partial") for result in found):
        raise UserError(
            f"{folder} holds the results of a whole test, which those of a part of its images would replace: give this "
            "one a folder of its own, by --trainer.default_root_dir."
        )


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
