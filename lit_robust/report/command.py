"""What ``lit-robust report`` does."""

from collections.abc import Sequence
from pathlib import Path

from lit_robust.report.page import write_report


def report(runs: list[Path], output: Path = Path("report.html"), published: Sequence[str] = ()) -> None:
    """Compare runs on one self-contained page, or in a table, and print where it stands.

    Args:
        runs: run folders that ``lit-robust test`` wrote into, or results files.
        output: file to write: ``.html`` for the page with plots and images, ``.md`` or ``.tex`` for the
            table, ``.csv`` for every value as a fraction, one a line.
        published: published networks to show beside the runs, such as ``resnet50``; ``all`` alone for every one that
            shares a column with them.

    Raises:
        UserError: no run is named, one cannot be read, a published network is not known, or the output has another
            suffix.
    """
    print(write_report(runs, output, published))
