"""Reports: report.html of one run, a comparison of several, and the comparison for the terminal."""

from orchestrator.views.report.comparison import comparison_table
from orchestrator.views.report.html import write_report

__all__ = ["comparison_table", "write_report"]
