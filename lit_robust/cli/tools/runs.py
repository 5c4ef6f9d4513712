"""``lit-robust demo``, ``report``, ``recompute``, ``sweep`` and ``convert``."""

import re
import shlex
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_robust.cli.tools.parser import parser_of


def compare(words: list[str]) -> None:
    """Compare runs on one page."""
    parser = parser_of("report", "Compare runs on one self-contained page, or in a table.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders that `lit-robust test` wrote into")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="file to write: .html, .md, .tex or .csv"
    )
    parser.add_argument(
        "--published",
        type=str,
        nargs="+",
        default=[],
        metavar="NAME",
        help="published networks to show beneath the runs, such as resnet50 alexnet humans, each value with its source "
        "and marked where its protocol is another; `all` alone for every one that shares a column with the runs",
    )
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="show what `lit-robust recompute RUN` computes by its defaults from the predictions that each run kept",
    )
    options = parser.parse_args(words)
    from lit_robust.report import report

    runs = options.runs
    if options.recompute:
        from lit_robust.recompute import Choices, beside, recompute

        command = shlex.join(["lit-robust", "report", *words])
        runs = [recompute(run, beside(run), Choices(), command).parent for run in runs]
    report(runs, options.output, options.published)


def recompute(words: list[str]) -> None:
    """Take measures again from kept predictions."""
    from lit_robust.callbacks.ood import Score
    from lit_robust.metrics.shape_bias import Aggregation
    from lit_robust.reference.corruption_baselines import BaselineName

    parser = parser_of(
        "recompute",
        "Take every measure that needs no network again from the predictions that a run kept (KeepPredictions): "
        "accuracy, calibration, corruption errors, OOD detection, shape bias, error consistency.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument(
        "-o", "--output", type=Path | None, default=None, help="folder for results.json; null for RUN-recomputed"
    )
    parser.add_argument(
        "--aggregation", type=Aggregation, default="mean", help="how a category's probability follows from its classes'"
    )
    parser.add_argument(
        "--baseline",
        type=BaselineName | None,
        default="imagenet-c",
        help="AlexNet's errors that corruption errors of ImageNet's classes are measured in; null for accuracies alone",
    )
    parser.add_argument(
        "--clean",
        type=str,
        default="imagenet",
        help="set that corruption errors are relative to, and of the images in distribution where ImageNet-O has none",
    )
    parser.add_argument(
        "--scores",
        type=list[Score],
        default=["max_softmax"],
        help="of OOD detection, without memory_similarity",
    )
    parser.add_argument(
        "--decisions",
        type=Path | None,
        default=None,
        help="CSV file, or folder of them, for error consistency",
    )
    options = parser.parse_args(words)
    from lit_robust.recompute import Choices, beside, recompute

    choices = Choices(options.aggregation, options.baseline, options.clean, options.scores, options.decisions)
    output = beside(options.run) if options.output is None else options.output
    print(recompute(options.run, output, choices, shlex.join(["lit-robust", "recompute", *words])))


def demonstrate(words: list[str]) -> None:
    """Run the demo."""
    parser = parser_of(
        "demo",
        "Draw toy data, train a standard, an AdvProp and an adversarially trained network, build a cache model of the "
        "first one's features, test them, and compare them on one page. Takes minutes on 2 CPU cores; a second "
        "call reuses what is finished.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for data, runs and the page")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the figures and of the training")
    options = parser.parse_args(words)
    from lit_robust.cli.demo import run_demo
    from lit_robust.cli.main import main

    run_demo(options.output, options.seed, main)


def sweep(words: list[str]) -> None:
    """Run a sweep."""
    parser = parser_of(
        "sweep",
        "Run the commands of a paper's table or figure one after another, and compare what they measured on one page. "
        "A second call goes on where the first one stopped. Its variables, which the file lists, are set by words of "
        "the form name=value.",
    )
    parser.add_argument("file", type=Path, help="the sweep, such as configs/sweeps/cache-table-1.yaml")
    parser.add_argument(
        "--output", type=Path | None, default=None, help="folder for its runs and the page; null for runs/<file's name>"
    )
    parser.add_argument("--list", action="store_true", help="print the command lines, one a run, and run none")
    parser.add_argument(
        "--limit",
        type=PositiveInt | None,
        default=None,
        help="images of each test set for a quick look, marked as partial",
    )
    # They may stand anywhere, which no positional argument of a parser may.
    settings = [word for word in words if re.match(r"\w[\w.-]*=", word)]
    options = parser.parse_args([word for word in words if word not in settings])
    from lit_robust.cli.sweep import run_sweep

    output = Path("runs") / options.file.stem if options.output is None else options.output
    run_sweep(options.file, output, settings, options.list, options.limit)


def convert(words: list[str]) -> None:
    """Convert a checkpoint."""
    parser = parser_of(
        "convert",
        "Read another lab's checkpoint without running anything in it, and write safetensors that any network setting "
        "here takes as weights, with a provenance file beside it. Such checkpoints can be named as weights directly, "
        "too.",
    )
    parser.add_argument("source", type=Path, help="the checkpoint")
    parser.add_argument("output", type=Path, help="the file to write, .safetensors")
    parser.add_argument(
        "--network", type=str | None, default=None, help="torchvision/<name> or timm/<name>, which it must then fit"
    )
    parser.add_argument("--num-classes", type=PositiveInt, default=1000, help="classes of that network")
    parser.add_argument(
        "--mean",
        type=str | None,
        default=None,
        help='per-channel mean it was trained with, in [0, 1] pixel units, as in "[0.5, 0.5, 0.5]"; null for what the '
        "checkpoint says",
    )
    parser.add_argument(
        "--std",
        type=str | None,
        default=None,
        help="per-channel standard deviation it was trained with, likewise",
    )
    parser.add_argument(
        "--copy",
        type=str,
        default="averaged",
        help="which copy of the weights to take of a checkpoint that holds several: averaged, raw, or one by its name",
    )
    options = parser.parse_args(words)
    from lit_robust.models.foreign.channels import channels_of_option
    from lit_robust.models.foreign.convert import convert

    print(
        convert(
            options.source,
            options.output,
            options.network,
            options.num_classes,
            channels_of_option("--mean", options.mean),
            channels_of_option("--std", options.std),
            options.copy,
        )
    )
