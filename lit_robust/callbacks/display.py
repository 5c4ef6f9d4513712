"""What an evaluation gives to loggers besides numbers: images, tables, curves, and the results file in a W&B run."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from lit_robust.core.files import atomic_path, write_text
from lit_robust.core.results import Result, RunResults
from lit_robust.core.scorecard import SCORES, main_strength, scores

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
def displaying(is_partial: bool) -> Iterator[list[Shown]]:
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
    """Write what was shown as ``shown.json``, with its images as PNG files next to it."""
    entries = []
    for number, one in enumerate(shown):
        names = [f"{number}-{place}.png" for place in range(len(one.images))]
        for name, image in zip(names, one.images, strict=True):
            with atomic_path(folder / name) as temporary:
                Image.fromarray(image).save(temporary, format="PNG")
        entries.append({**asdict(replace(one, images=())), "images": names})
    write_text(folder / FILE, json.dumps(entries))


def read_shown(folder: Path) -> list[Shown]:
    """Return what ``write_shown`` wrote."""
    entries = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return [
        Shown(**{**entry, "images": [np.asarray(Image.open(folder / name)) for name in entry["images"]]})
        for entry in entries
    ]


def shape_image(decisions: Mapping[str, tuple[int, int]]) -> NDArray[np.uint8]:
    """Draw how the decisions for an image's shape or its texture divide in each category, and over all of them.

    Args:
        decisions: category of shapes to the numbers of decisions for shape and for texture; a category with neither
            gets no mark.

    Returns:
        uint8 ``[H, W, 3]``: a row a category, a mark further left the more decisions are for shape, and a line at the
        fraction over all categories.
    """
    from matplotlib.figure import Figure

    names = [name.replace("_", " ") for name in decisions]
    counts = np.array(list(decisions.values()), dtype=np.float64).reshape(-1, 2)
    figure = Figure(figsize=(5.2, 1.2 + 0.26 * len(names)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    decided = counts.sum(1) > 0
    axes.plot(counts[decided, 1] / counts[decided].sum(1), np.flatnonzero(decided), "o", clip_on=False, zorder=3)
    if decided.any():
        axes.axvline(counts[:, 1].sum() / counts.sum(), zorder=2)
    axes.axvline(0.5, color="black", linewidth=0.8, zorder=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("fraction of texture decisions")
    above = axes.secondary_xaxis("top", functions=(_mirrored, _mirrored))
    above.set_xlabel("fraction of shape decisions")
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return np.asarray(Image.open(drawn).convert("RGB"))


def _mirrored(fraction: Any) -> Any:
    return 1 - fraction


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Return the trainer's W&B loggers, on rank 0; none on other ranks, whose loggers write nowhere."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger) and trainer.is_global_zero]


def log_curve(trainer: Trainer, key: str, columns: tuple[str, str], points: Sequence[tuple[float, float]]) -> None:
    """Show a line through points in a W&B run, which keeps its table as ``<key>_table``.

    Args:
        trainer: whose loggers.
        key: of the line.
        columns: what is along the horizontal and the vertical axis.
        points: in their order.
    """
    show(trainer, Shown("curve", key, columns, points))


def log_heat_map(trainer: Trainer, key: str, cells: Mapping[str, float]) -> None:
    """Show accuracies by corruption and severity, as the table ``<key>`` and as the image ``<key>_heat_map``.

    Args:
        trainer: whose loggers.
        key: of the table.
        cells: name of a cell, such as ``fog/3``, to the fraction that is right.
    """
    if not wandb_loggers(trainer) or not cells:
        return
    places = [cell.split("/") for cell in cells]
    names = list(dict.fromkeys(corruption for corruption, _ in places))
    severities = sorted({int(severity) for _, severity in places})
    rows = [[cells.get(f"{name}/{severity}") for severity in severities] for name in names]
    columns = ["corruption", *(f"severity {severity}" for severity in severities)]
    show(trainer, Shown("table", key, columns, [[name, *row] for name, row in zip(names, rows, strict=True)]))
    drawn, words = [heat_map(names, severities, rows)], ["top-1 accuracy, percent"]
    show(trainer, Shown("images", f"{key}_heat_map", images=drawn, captions=words))


def heat_map(
    names: Sequence[str], severities: Sequence[int], rows: Sequence[Sequence[float | None]]
) -> NDArray[np.uint8]:
    """Draw fractions as a coloured table, with percentages in it.

    Args:
        names: of the rows.
        severities: of the columns.
        rows: fractions in [0, 1]; null for a cell that was not tested, which stays empty.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    from matplotlib.figure import Figure

    values = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    figure = Figure(figsize=(2.2 + 0.6 * len(severities), 0.6 + 0.28 * len(names)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlabel("severity")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            # Viridis is bright above its middle.
            colour = "black" if value > 0.5 else "white"
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return np.asarray(Image.open(drawn).convert("RGB"))


CARD = "test/score_card"  # Behind score/clean and its like, by which W&B's views begin.


def log_card(logger: WandbLogger, card: Mapping[str, Result]) -> None:
    """Show the ten values that matter one by one, and as a table with their 95 % intervals.

    They are logged, as `wandb leet` draws what was logged, by name, and so these first.

    Args:
        logger: of a run.
        card: of ``scores``.
    """
    if not card:
        return
    logger.experiment.log({f"score/{name}": result.value for name, result in card.items()})
    titles = {score.name: score.title for score in SCORES}
    rows = [
        [titles[name], result.value, *(result.interval or (None, None)), result.count, result.key]
        for name, result in card.items()
    ]
    logger.log_table(key=CARD, columns=["score", "value", "low", "high", "images", "of"], data=rows)


def log_warnings(trainer: Trainer, results: Sequence[Result]) -> None:
    """Write the warnings of results into ``metrics.csv``, ``test/<dataset>/<metric>/warnings``, in a row of their own.

    Args:
        trainer: whose loggers.
        results: of its test.
    """
    doubts: dict[str, Any] = {f"{one.key}/warnings": " ".join(one.warnings) for one in results if one.warnings}
    for logger in trainer.loggers if doubts and trainer.is_global_zero else ():
        if isinstance(logger, CSVLogger):
            logger.log_metrics(doubts, step=trainer.global_step)


def keep_evaluation(trainer: Trainer, found: RunResults, file: Path) -> None:
    """Put values and warnings into a W&B run's summary, mark what is partial, and keep the results file as an artifact.

    A value's warnings are ``test/<dataset>/<metric>/warnings``, and together the table ``test/warnings``.

    The artifact ``evaluation-<run>`` refers to a copy inside the W&B run's own folder, so that an offline run can be
    synchronised after ``results.json`` has changed.

    Args:
        trainer: whose loggers.
        found: the results.
        file: ``results.json``.
    """
    for logger in wandb_loggers(trainer):
        import wandb

        run = logger.experiment
        values = {result.key: result.value for result in found.results}
        # Of what a whole set has there may be no number, where values are of two sets.
        partial = {r.dataset: r.protocol.get("full_count") for r in found.results if r.protocol.get("partial")}
        run.summary.update(values)
        card = scores(found.results, main_strength([found.results]))
        run.summary.update({f"score/{name}": result.value for name, result in card.items()})
        log_card(logger, card)
        doubts = [[result.key, warning] for result in found.results for warning in result.warnings]
        run.summary.update({f"{r.key}/warnings": " ".join(r.warnings) for r in found.results if r.warnings})
        if doubts:
            logger.log_table(key="test/warnings", columns=["measure", "warning"], data=doubts)
        for dataset, full in partial.items():
            known = {} if full is None else {f"test/{dataset}/full_count": full}
            run.summary.update({f"test/{dataset}/{PARTIAL}": True, **known})
        kept = [tag for tag in run.tags or () if tag != PARTIAL]
        run.tags = (*kept, PARTIAL) if partial else tuple(kept)
        copy = Path(run.dir) / file.name
        shutil.copyfile(file, copy)
        name = re.sub(r"[^\w.-]", "-", str(found.run["name"]))
        facts = {"sets": sorted({result.dataset for result in found.results}), PARTIAL: sorted(partial)}
        artifact = wandb.Artifact(f"evaluation-{name}", type="evaluation", metadata=facts)
        artifact.add_file(str(copy), policy="immutable")
        run.log_artifact(artifact)
