"""What ``lit-robust report`` does."""

from pathlib import Path

from lit_robust.report.page import write_report


def report(runs: list[Path], output: Path = Path("report.html")) -> None:
    """Compare runs on one self-contained page, or in a table, and print where it stands.

    Args:
        runs: run folders that ``lit-robust test`` wrote into, or results files.
        output: file to write: ``.html`` for the page with plots and images, ``.md`` for the table, ``.csv`` for
            every value as a fraction, one a line.

    Raises:
        UserError: no run is named, one cannot be read, or the output has another suffix.
    """
    print(write_report(runs, output))
