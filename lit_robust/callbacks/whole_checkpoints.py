"""Checkpoints that are whole or not there, wherever the folder for temporary files lies."""

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import Trainer

from lit_robust.core.files import atomic_path


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there.

    Lightning's own writes it into the folder for temporary files first (fsspec's transaction); where that is another
    disk, as on most clusters, the move is a copy, and a job killed in it has lost its last checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        # Into a file of Python's, whose error names a full disk; torch's own says only that a position is unexpected.
        with atomic_path(Path(path)) as beside, beside.open("wb") as file:
            torch.save(checkpoint, file)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints so, unless it was given a way of its own, or writes to a URL."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO and "://" not in str(trainer.default_root_dir):
        strategy.checkpoint_io = WholeCheckpoints()
