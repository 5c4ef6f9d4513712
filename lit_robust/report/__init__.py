"""Results files to one page, a table, and plots."""

from lit_robust.report.command import report
from lit_robust.report.page import write_report
from lit_robust.report.runs import Run, load_runs
from lit_robust.report.table import Table, compare
from lit_robust.report.terminal import terminal

__all__ = ["Run", "Table", "compare", "load_runs", "report", "terminal", "write_report"]
