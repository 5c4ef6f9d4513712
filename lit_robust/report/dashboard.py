"""The W&B workspace of a project: built from a plan here, saved on the server."""

import json
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.report.dashboard_plan import Panel, Section, plain_plan, plan
from lit_robust.report.runs import load_runs

PACKAGE = "wandb_workspaces"
LINE_CHART = "wandb/line/v0"  # what wandb.plot.line draws with
COLUMNS = 3  # of panels
MOST_RUNS = 30  # in a panel; the app's own limit is 10


def dashboard(
    runs: list[Path], entity: str, project: str, name: str = "Robustness", output: Path | None = None
) -> None:
    """Build a workspace with panels for the runs' measures, save it to W&B, and print its address.

    Sections are clean, adversarial, natural, shape, memory and training; each shows all runs of the project that
    logged the measure, values as fractions from 0 to 1. Needs the package wandb-workspaces and a W&B login; with an
    output, neither, nor a network.

    Args:
        runs: run folders that ``lit-robust test`` wrote into, or results files; their measures get panels.
        entity: user or team that the project belongs to.
        project: the W&B project that the runs were logged to.
        name: of the workspace.
        output: a JSON file to write the plan of the panels into, instead of saving a workspace.

    Raises:
        UserError: a run cannot be read, a name is empty, the package is missing, or W&B cannot be reached.
    """
    for option, value in (("entity", entity), ("project", project), ("name", name)):
        if not value.strip():
            raise UserError(f"The {option} of the dashboard is empty: give W&B's name of it by --{option}.")
    sections = plan([run.found for run in load_runs(runs)])
    if output is not None:
        write_text(output, json.dumps(plain_plan(sections), indent=1, ensure_ascii=False) + "\n")
        print(output)
        return
    workspace = build_workspace(sections, entity, project, name)
    try:
        workspace.save()
    except OSError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"W&B cannot be reached ({reason}): check the network, or write the plan of the panels by --output."
        ) from error
    print(workspace.url)


def build_workspace(sections: Iterable[Section], entity: str, project: str, name: str) -> Any:
    """Return a workspace of the package wandb-workspaces, which has not been saved; needs no network.

    Args:
        sections: what it shows, such as from ``plan``.
        entity: user or team that the project belongs to.
        project: the W&B project.
        name: of the workspace.

    Raises:
        UserError: the package is missing.
    """
    if find_spec(PACKAGE) is None:
        raise UserError(
            "The dashboard needs the package wandb-workspaces, which is not here: install it, such as by "
            "`uv pip install wandb-workspaces`, or write the plan of the panels alone by --output dashboard.json."
        )
    workspaces = import_module(f"{PACKAGE}.workspaces")
    reports = import_module(f"{PACKAGE}.reports.v2")
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(
                name=section.name,
                panels=[_panel(reports, panel) for panel in section.panels],
                is_open=True,
                # Sections flow in pages; rows for all panels keep a whole section on one.
                layout_settings=workspaces.SectionLayoutSettings(
                    columns=COLUMNS, rows=ceil(len(section.panels) / COLUMNS)
                ),
            )
            for section in sections
        ],
        settings=workspaces.WorkspaceSettings(max_runs=MOST_RUNS),
    )


def _panel(reports: Any, panel: Panel) -> Any:
    """Return a panel as an object of wandb-workspaces' ``reports.v2``, where all kinds of panels are."""
    keys = list(panel.keys)
    if panel.kind == "lines":
        return reports.LinePlot(title=panel.title, x="trainer/global_step", y=keys, max_runs_to_show=MOST_RUNS)
    if panel.kind == "points":
        across, up = reports.Config(panel.across), reports.SummaryMetric(keys[0])
        return reports.ScatterPlot(title=panel.title, x=across, y=up)
    if panel.kind == "curve":
        fields, words = {"x": panel.across, "y": panel.up}, {"title": panel.title}
        query = {"summaryTable": {"tableKey": keys[0]}}
        return reports.CustomChart(query=query, chart_name=LINE_CHART, chart_fields=fields, chart_strings=words)
    if panel.kind == "images":
        return reports.MediaBrowser(title=panel.title, media_keys=keys, num_columns=4)
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=keys[0])
    bars = len(keys) * MOST_RUNS
    return reports.BarPlot(title=panel.title, metrics=keys, max_runs_to_show=MOST_RUNS, max_bars_to_show=bars)
