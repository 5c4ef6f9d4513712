"""Results files to one page, a board, a table, plots, and a W&B workspace."""

from lit_robust.report.board import write_board
from lit_robust.report.dashboard import dashboard
from lit_robust.report.page import report, write_report
from lit_robust.report.runs import Run, load_runs
from lit_robust.report.table import Table, compare
from lit_robust.report.text import terminal

__all__ = ["Run", "Table", "compare", "dashboard", "load_runs", "report", "terminal", "write_board", "write_report"]
