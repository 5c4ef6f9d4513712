"""``lit-robust dashboard``."""

from pathlib import Path

from lit_robust.cli.tools.parser import parser_of


def workspace(words: list[str]) -> None:
    """Save a W&B workspace."""
    parser = parser_of(
        "dashboard",
        "Build a W&B workspace with panels for the measures of runs, grouped into clean, adversarial, natural, shape, "
        "memory and training, and save it. It shows all runs of the project that logged a measure. Needs the package "
        "wandb-workspaces and `wandb login`; with --output, neither.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders that `lit-robust test` wrote into")
    parser.add_argument("--entity", type=str, required=True, help="W&B user or team that the project belongs to")
    parser.add_argument("--project", type=str, required=True, help="W&B project that the runs were logged to")
    parser.add_argument("--name", type=str, default="Robustness", help="of the workspace")
    parser.add_argument(
        "-o",
        "--output",
        type=Path | None,
        default=None,
        help="write the plan of the panels into this JSON file, and save no workspace",
    )
    options = parser.parse_args(words)
    from lit_robust.report import dashboard

    dashboard(options.runs, options.entity, options.project, options.name, options.output)
