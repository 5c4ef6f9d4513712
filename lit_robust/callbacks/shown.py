"""What an evaluation shows to loggers beside numbers: images, tables and curves, which a resumed test shows again."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import WandbLogger

from lit_robust.core.files import atomic_path, write_text

PARTIAL = "partial"  # What marks it where only a part of a set was evaluated.
FILE = "shown.json"


@dataclass(frozen=True)
class Shown:
    """One thing to look at.

    Attributes:
        kind: ``images``; ``table``; ``curve``, a line through points, which W&B alone draws.
        key: the loggers' key.
        columns: of a table, or what is along the two axes of a curve.
        rows: of a table, or the points of a curve in their order.
        captions: of images.
        images: uint8 ``[H, W, 3]`` each.
        is_partial: whether it is of a part of a set; captions and titles then say so.
    """

    kind: Literal["images", "table", "curve"]
    key: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    captions: Sequence[str] = ()
    images: Sequence[NDArray[np.uint8]] = ()
    is_partial: bool = False

    def marked(self, words: str) -> str:
        """Return words with the mark of what is partial, if it is."""
        return f"{words}, {PARTIAL}" if self.is_partial else words


@dataclass
class _Showing:
    is_partial: bool
    shown: list[Shown]


_showing: ContextVar[_Showing | None] = ContextVar("_showing", default=None)


@contextmanager
def noting(is_partial: bool) -> Iterator[list[Shown]]:
    """Yield a list that takes what is shown inside the block, all of it marked where it is of a part of a set."""
    shown: list[Shown] = []
    token = _showing.set(_Showing(is_partial, shown))
    try:
        yield shown
    finally:
        _showing.reset(token)


def show(trainer: Trainer, shown: Shown) -> None:
    """Show something to every logger that takes it (W&B does; CSV does not), and note it for a resumed test."""
    takers: list[Any] = [logger for logger in trainer.loggers if _takes(logger, shown)]
    if not takers:
        return
    around = _showing.get()
    if around is not None:
        shown = replace(shown, is_partial=around.is_partial)
        around.shown.append(shown)
    for logger in takers:
        if shown.kind == "images":
            captions = [shown.marked(words) for words in shown.captions]
            logger.log_image(key=shown.key, images=list(shown.images), caption=captions)
        elif shown.kind == "table":
            logger.log_table(key=shown.key, columns=list(shown.columns), data=[list(row) for row in shown.rows])
        elif trainer.is_global_zero:  # On other ranks a logger writes nowhere.
            _log_curve(logger, shown)


def _takes(logger: Any, shown: Shown) -> bool:
    if shown.kind == "curve":
        return isinstance(logger, WandbLogger)
    return (
        hasattr(logger, "log_table") if shown.kind == "table" else bool(shown.images) and hasattr(logger, "log_image")
    )


def _log_curve(logger: WandbLogger, shown: Shown) -> None:
    import wandb

    rows = wandb.Table(columns=list(shown.columns), data=[list(point) for point in shown.rows])
    across, up = shown.columns
    logger.experiment.log({shown.key: wandb.plot.line(rows, across, up, title=shown.marked(shown.key))})


def write_shown(shown: Sequence[Shown], folder: Path) -> None:
    """Write what was shown as ``shown.json``, with its images as PNG files beside it."""
    entries = []
    for number, one in enumerate(shown):
        names = [f"{number}-{place}.png" for place in range(len(one.images))]
        for name, image in zip(names, one.images, strict=True):
            with atomic_path(folder / name) as beside:
                Image.fromarray(image).save(beside, format="PNG")
        entries.append({**asdict(replace(one, images=())), "images": names})
    write_text(folder / FILE, json.dumps(entries))


def read_shown(folder: Path) -> list[Shown]:
    """Return what ``write_shown`` wrote."""
    entries = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return [
        Shown(**{**entry, "images": [np.asarray(Image.open(folder / name)) for name in entry["images"]]})
        for entry in entries
    ]
