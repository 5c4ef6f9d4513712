"""Studies sent to W&B: values, tables and pictures, a run each."""

import csv
import math
from pathlib import Path
from typing import Any

from lit_robust.core.errors import UserError
from lit_robust.core.results import Result
from lit_robust.report.runs import load_runs, read_picture

COLUMNS: list[str | int] = ["dataset", "metric", "value", "low", "high", "unit", "count", "warnings"]


def log_study(folder: Path, project: str) -> str:
    """Send what a study left to W&B, and return where it is.

    Values have the keys that `lit-robust test` gives them; tables and pictures have the study's name before theirs.

    Args:
        folder: that `lit-robust analyze` wrote.
        project: of W&B.

    Raises:
        UserError: the folder is not that of a study.
    """
    import wandb

    (study,) = load_runs([folder])
    found = study.found
    if "study" not in found.run:
        raise UserError(f"{folder} is of `lit-robust test`, which logs as it runs: name a folder of `analyze`.")
    kind, folder = str(found.run["study"]), study.folder
    content: dict[str, object] = {one.key: one.value for one in found.results if not math.isnan(one.value)}
    content[f"{kind}/values"] = wandb.Table(columns=COLUMNS, data=[_row(one) for one in found.results])
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            head, *rows = csv.reader(stream)
        columns = [[_plain(row[place]) for row in rows] for place in range(len(head))]
        data = [list(row) for row in zip(*columns, strict=True)]
        content[f"{kind}/{file.stem}"] = wandb.Table(columns=[*head], data=data, allow_mixed_types=True)
    for example in found.examples:
        for role, name in example.images.items():
            if read_picture(study, name) is not None:
                picture = wandb.Image(str(folder / name), caption=example.captions.get(role, ""))
                content[f"{kind}/{Path(name).stem}"] = picture
    config = {"run": found.run, "model": found.model}
    with wandb.init(project=project, name=str(found.run["name"]), job_type=kind, config=config, dir=folder) as run:
        run.log(content)
        return run.url or f"{Path(run.dir).parent}, which `wandb sync` sends"


def _row(result: Result) -> list[Any]:
    low, high = result.interval or (None, None)
    value = None if math.isnan(result.value) else result.value
    return [result.dataset, result.metric, value, low, high, result.unit, result.count, "; ".join(result.warnings)]


def _plain(text: str) -> Any:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text
