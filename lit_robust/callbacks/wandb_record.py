"""What a W&B run keeps of a test beside the scalars: curves, a heat map, the results file, and what is partial."""

import re
import shutil
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import WandbLogger

from lit_robust.callbacks.shown import PARTIAL, Shown, show
from lit_robust.core.results import RunResults


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
